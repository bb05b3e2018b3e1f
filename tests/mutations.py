"""The errors that `tests.mutate` makes: text that stands once in a file below pipeline/, what takes its place, and the
tests that notice."""

from tests.mutate import Mutation as M

LOOP = "test_loop.py"
MUTATIONS = (
    # ---- the loop
    M("EMA: decay and 1 - decay exchanged", "training/loop.py", "a.lerp_(p, 1 - decay)", "a.lerp_(p, decay)", LOOP),
    M("EMA: statistics not copied", "training/loop.py", "            a.copy_(b)", "            pass", LOOP),
    M("gradients never clipped", "training/loop.py", "    if limit:\n", "    if False:\n", LOOP),
    M("commit before the step", "training/loop.py",
      "        optimiser.step()\n        optimiser.zero_grad(set_to_none=True)\n"
      "        objective.commit(result.pending, step, (step + 1) / total)\n",
      "        objective.commit(result.pending, step, (step + 1) / total)\n"
      "        optimiser.step()\n        optimiser.zero_grad(set_to_none=True)\n", LOOP),
    M("learning rate a step late", "training/loop.py",
      "optim.rate(settings, step, total", "optim.rate(settings, max(0, step - 1), total", LOOP),
    M("learning rate never scheduled", "training/loop.py",
      'group["lr"] = optim.rate(settings, step, total, feed.steps_per_epoch)', "pass", LOOP),
    M("epoch always 0", "training/loop.py", "x.ids, step, epoch, seed,", "x.ids, step, 0, seed,", LOOP),
    M("progress always 1", "training/loop.py", "seed, step / total) for", "seed, 1.0) for", LOOP),
    M("progress dropped at commit", "training/loop.py", "step, (step + 1) / total)", "step)", LOOP),
)
