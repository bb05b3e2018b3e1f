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
    # ---- objectives
    M("MoCo v3: progress dropped", "objectives/moco_v3.py", "momentum(self.settings, progress)",
      "momentum(self.settings, 0.0)", "test_oracles.py::test_momentum_rises_to_one_along_a_cosine"),
    M("MoCo: progress dropped", "objectives/moco.py", "momentum(self.settings, progress)",
      "momentum(self.settings, 0.0)", "test_oracles.py::test_momentum_rises_to_one_along_a_cosine"),
    M("PIRL: negatives never redrawn", "objectives/pirl.py", 'batch.seed, batch.step, "negatives"',
      'batch.seed, 0, "negatives"', "test_oracles.py::test_pirl_draws_its_negatives_anew_each_step"),
    M("symmetric keys interleaved", "objectives/moco.py",
      "keys.transpose(0, 1).flatten(0, 1), ids.repeat(keys.shape[1])",
      "keys.flatten(0, 1), ids.repeat_interleave(keys.shape[1])",
      "test_oracles.py::test_symmetric_keys_are_enqueued_a_view_after_the_other"),
    M("free bits before the mean", "objectives/autoencoders.py", "pressed = kl.mean(0)",
      "pressed = kl.clamp(min=self.settings.free_bits).mean(0)",
      "test_oracles.py::test_free_bits_are_of_the_mean_over_the_batch"),
    # ---- nets
    M("ViT: another bound of the projection", "nets/trunks.py", "math.sqrt(6 / (image.channels * net.patch**2",
      "math.sqrt(3 / (image.channels * net.patch**2",
      "test_nets.py::test_vits_patch_projection_starts_within_its_bound"),
    # ---- views
    M("both views share their colours", "views/recipes.py", 'two: tuple = (*words, "two")',
      'two: tuple = (*words, "one")', "test_views.py::test_colours_are_drawn_for_each_view_and_each_epoch"),
    M("colours the same every epoch", "views/recipes.py",
      '        words = (self.seed, epoch, ids)\n        one: tuple',
      '        words = (self.seed, 0, ids)\n        one: tuple',
      "test_views.py::test_colours_are_drawn_for_each_view_and_each_epoch"),
    M("patch order the same every epoch", "views/jigsaw.py", 'seed, epoch, ids, "patches", "order"',
      'seed, 0, ids, "patches", "order"', "test_views.py::test_draws_are_new_for_every_seed_epoch_and_sample"),
    M("affine: one shear for both axes", "views/affine.py", "shear[0], shear[1], one", "shear[0], shear[0], one",
      "test_affine.py::test_shears_along_both_axes_are_drawn_apart"),
    M("affine: scale not inverted", "views/affine.py", "shrink = 1 / between(", "shrink = between(",
      "test_affine.py::test_a_scale_above_one_enlarges"),
    # ---- evaluation
    M("few labels from validation too", "stages/probe.py", "linear.draw(y, parts.fit,",
      "linear.draw(y, np.arange(len(y)),",
      "test_probe.py::test_labels_are_drawn_from_the_fit_part_alone"),
    M("judged on unnormalised images", "evaluation/quality.py", "x.to(device).float() / 255 - mean) / std",
      "x.to(device).float() / 255)",
      "test_evaluation.py::test_a_trunk_is_judged_on_normalised_images_none_of_which_it_trains_on"),
    M("centre without antialias", "data/loader.py", "antialias=True), [side", "antialias=False), [side",
      "test_evaluation.py::test_images_of_another_size_are_resized_smoothly_and_their_centre_is_cut"),
    M("centre from another size", "data/loader.py", "[side * 8 // 7]", "[side]",
      "test_evaluation.py::test_images_of_another_size_are_resized_smoothly_and_their_centre_is_cut"),
    # ---- numbers
    M("three rounds for six", "keyed.py", "ROUNDS = 6", "ROUNDS = 3",
      "test_keyed.py::test_a_permutation_is_a_feistel_network_of_six_rounds"),
)
