"""Every tag that is shown: what it is, its unit, and what is healthy. TensorBoard sorts tags by their letters, so the
families are named such that what is good comes first, then what shows a collapse, and what the machine does last.

`python -m pipeline.tags` prints them as Markdown, which is `docs/tags.md`.
"""

from fnmatch import fnmatchcase
from functools import cache
from typing import NamedTuple

POINT, NARROW, FAR, FLAT, LEAKAGE, UNLIMITED = 0.17, 1.5, 0.9, 0.02, 0.08, 0.5
"""Limits past which a training counts as collapsed: the embeddings' deviation over that of the sphere, the directions
they fill, the ratio of distances of positives to others, nats between negatives and positives, a cosine, the share of
what no limit of the volume would give."""


class Tag(NamedTuple):
    """``healthy``: what a good training shows; empty where nothing is to be watched."""

    text: str
    unit: str
    healthy: str = ""

    def __str__(self) -> str:
        parts = [self.text, f"Unit: {self.unit}.", f"Healthy: {self.healthy}." if self.healthy else ""]
        return " ".join(filter(None, parts))


SHARE, NATS, SECONDS, PICTURE = "share, 0 to 1", "nats", "seconds a step", "picture"
ABOVE = "above raw_pixels and random, and rising"

TAGS = {
    "accuracy": {
        "linear_few": Tag("Test accuracy of a linear probe on few labels a class, the mean over label draws.",
                          SHARE, ABOVE),
        "linear_top1": Tag("Test accuracy of a linear probe on all labels.", SHARE, ABOVE),
        "knn_top1": Tag("Test accuracy of a vote of the nearest training images.", SHARE, ABOVE),
        "knn_online": Tag("Accuracy of such a vote on training images while the encoder learns.", SHARE, "rising"),
        "rows": Tag("The three accuracies of every encoder with their deviations.",
                    PICTURE, "encoders right of raw_pixels"),
    },
    "ae": {
        "error": Tag("Squared reconstruction error of an image, summed over pixels.",
                     "squared pixel range", "falling"),
    },
    "anomaly": {
        "sets": Tag("Test images and sets that are none of them, with their energies.", PICTURE,
                    "more energy in every other set"),
        "*_corrected": Tag("The same of energies less the length of an image as PNG, in nats.", SHARE, "near 1"),
        "*": Tag("Share of pairs of a test image and one of this set in which the test image has less energy.",
                 SHARE, "near 1; near 0 where simpler images are more likely"),
    },
    "codes": {
        "objective": Tag("Lasso objective of the batch's codes while the dictionary learns.",
                         "whitened units", "falling, then level"),
        "nnz": Tag("Nonzero entries of a code while the dictionary learns.", "entries", "far fewer than atoms"),
        "gap": Tag("Largest duality gap of the batch: how far a code may be from the exact one.",
                   "whitened units", "below 1e-3"),
        "energy": Tag("Lasso objective of the codes that LISTA predicts.", "whitened units", "falling"),
        "nonzero": Tag("Nonzero entries of a code that LISTA predicts.", "entries", "above 0, far fewer than atoms"),
        "ista": Tag("Objective after so many steps of ISTA, over the least, less 1; the step is the iteration.",
                    "ratio", "falling"),
        "fista": Tag("The same of FISTA.", "ratio", "below ISTA"),
        "lista": Tag("The same after so many layers of LISTA.", "ratio", "far below ISTA at the same step"),
        "usage": Tag("Share of test signals in whose codes each atom is used.",
                     "share, a histogram over atoms", "few atoms at 0"),
        "dictionary": Tag("Atoms, the most used first.", PICTURE, "strokes and edges, not noise"),
        "strongest": Tag("For the most used atoms, the test signals that use them most.", PICTURE, "alike in a row"),
        "held_out_objective": Tag("Lasso objective of exact codes of test signals.",
                                  "whitened units", "near codes/objective"),
        "held_out_gap": Tag("Largest duality gap of test signals.", "whitened units", "below 1e-3"),
        "held_out_violation": Tag("Largest violation of the lasso's optimality conditions.",
                                  "whitened units", "below 1e-2"),
        "held_out_nnz": Tag("Nonzero entries of a test signal's code.", "entries", "far fewer than atoms"),
        "held_out_dead": Tag("Atoms that no test signal uses.", "atoms", "0"),
        "held_out_alive": Tag("Share of the atoms that some test signal uses.", SHARE, "near 1"),
        "held_out_explained": Tag("Share of the test signals' energy that their codes restore.", SHARE, "above 0.5"),
    },
    "collapse": {
        "std": Tag("Deviation of embeddings of length 1, mean over dimensions.", "1",
                   f"near 1/sqrt(dimensions); below {POINT} of that they are one point"),
        "directions": Tag("Directions that the batch's embeddings fill.", "directions, at most batch and dimensions",
                          f"many; below {NARROW} they are a line"),
        "rankme": Tag("RankMe: effective rank of the encoder's features while it learns.", "dimensions",
                      "rising, well above 1"),
        "feature_rankme": Tag("The same of all training images, by the probe.", "dimensions", "well above 1"),
        "feature_std": Tag("Deviation of features of length 1, mean over dimensions, by the probe.", "1",
                           "well above 0"),
        "alignment_ratio": Tag("Squared distance of an image's two views over that of two images.", "ratio",
                               f"falling; above {FAR} views tell nothing"),
        "alignment": Tag("Squared distance of the embeddings of an image's two views.",
                         "squared length, 0 to 4", "falling"),
        "uniformity": Tag("Log of the mean of exp(-2 squared distance) over pairs of images.",
                          NATS, "falling towards -4"),
        "batchnorm_leakage": Tag("How much nearer two views are for having had the same companions in batch norm.",
                                 "cosine", f"near 0; above {LEAKAGE} batch norm gives the answer away"),
        "teacher_entropy": Tag("Entropy of DINO's teacher distribution of an image.", NATS,
                               "between 0, which is one prototype, and the log of how many there are"),
        "unlimited": Tag("What limits the volume of low energy in a method without negatives, over what it would be "
                         "without a limit.", "ratio", f"falling towards 0; above {UNLIMITED} nothing limits it"),
    },
    "confusion": {"": Tag("How many test images of each class were taken for which.", PICTURE, "a dark diagonal")},
    "density": {
        "moved": Tag("Share of the pixels that a chain changed since it was last looked at.", SHARE, "well above 0"),
        "travelled": Tag("Root of the mean square of what chains have changed of pixels in a step of the training.",
                         "pixels between 0 and 1", "well above 0"),
        "log_partition": Tag("Logarithm of the sum of exp(-energy) over all states, or what is learned of it.",
                             NATS, "level in the end"),
        "unlikely": Tag("Share of an image's pixels whose flip would lower its energy.", SHARE, "falling"),
        "clamped": Tag("Share of the pixels at which minimum probability flow grows as a line.",
                       SHARE, "0 after the first steps"),
        "untold": Tag("Mean square of what the energy's slope leaves untold of the noise on a pixel, in deviations.",
                      SHARE, "below 1, which is a flat energy's"),
        "frechet": Tag("Frechet distance of samples from test images, by features of an encoder.",
                       "squared length of features", "near density/frechet_floor"),
        "frechet_floor": Tag("Frechet distance of as many training images from test images.",
                             "squared length of features", "small"),
        "accuracy": Tag("Share of images and of noise that are told from each other.",
                        SHARE, "above one half, below 0.95"),
        "log_likelihood": Tag("Mean log-likelihood of test images: exact, or by importance sampling rather too low.",
                              "nats an image", "high, near that of training images"),
        "log_likelihood_se": Tag("Standard error of that which the estimate of the partition function has.", NATS,
                                 "below 1"),
        "log_likelihood_ess": Tag("Chains that count in that estimate, by their weights.", "chains", "most of them"),
        "log_likelihood_high": Tag("The same by annealing from noise to the model, rather too high.", "nats an image",
                                   "near density/log_likelihood"),
        "log_likelihood_high_se": Tag("Standard error of its partition function.", NATS, "below 1"),
        "log_likelihood_high_ess": Tag("Chains that count in it, by their weights.", "chains", "most of them"),
        "log_likelihood_bound": Tag("Log-likelihood under what annealed chains really draw: never too high.",
                                    "nats an image", "near density/log_likelihood"),
        "log_likelihood_bound_se": Tag("Standard error of that bound.", NATS, "below 1"),
        "images_se": Tag("Standard error of the mean log-likelihood over test images.", NATS, "below 1"),
        "chain_rhat": Tag("Split R-hat of chains' energies: their deviation in all over that inside of a chain.",
                          "ratio", "below 1.01, else they do not mix"),
        "chain_ess": Tag("Independent states that the chains' energies are worth.", "states", "hundreds"),
        "energy_*": Tag("Energies of test and training images, of chains drawn afresh, of the training's particles, "
                        "and of sets that are none of them.", "nats, up to a constant, or the objective's own",
                        "training images and chains as low as test images, the rest above"),
        "elbo": Tag("Mean log weight of test images' draws: evidence lower bound of density/log_likelihood.",
                    "nats an image", "near density/log_likelihood"),
        "unsure": Tag("Share of the test images whose likelihood rests on few of its draws.", SHARE, "near 0"),
        "kl": Tag("Information that the latents of test images hold beside the prior.", "nats an image",
                  "well above 0"),
        "information": Tag("Part of density/kl that tells one test image from another.", "nats an image",
                           "nearly all of density/kl"),
        "aggregate_kl": Tag("Part of density/kl by which all latents together differ from the prior.",
                            "nats an image", "small"),
        "active_units": Tag("Latent units whose mean varies with the test image.", "units", "most of the latent"),
    },
    "energy": {
        "low": Tag("Energy of data or of positive pairs.",
                   "nats, or the objective's own", "falling, below energy/high"),
        "high": Tag("Mean energy of negatives.", "nats, or the objective's own", "above energy/low"),
        "gap": Tag("How far the energies of negatives lie above those of positives.", "nats, or the objective's own",
                   f"rising; below {FLAT} nothing is told apart"),
        "volume": Tag("What keeps most energies high: directions of an AE's codes, KL of a VAE, L1 norm of codes, "
                      "the part of the loss that spreads joint embeddings; of BYOL and SimSiam their deviation "
                      "over that of a sphere, which no term limits; what DINO's teacher tells of an image.",
                      "directions, nats, length, or the loss's own", "above 0, then level"),
        "test": Tag("Mean energy of test images under the trained model.", "the objective's own", "near energy/low"),
    },
    "features": {"": Tag("Test images by their features on principal axes.", "projector", "classes apart")},
    "interpolations": {"": Tag("Straight paths in latent space between two images, decoded.", PICTURE, "no jump")},
    "latent": {
        "codes": Tag("Where test images lie in the latent plane.", PICTURE, "classes apart, within two deviations"),
        "plane": Tag("What each place of the latent plane is decoded to.", PICTURE, "images everywhere, no jump"),
        "cost": Tag("Cost of an image given the code that is inferred for it: what the free energy has without its "
                    "penalty.", "half the squared pixel range, or nats", "falling"),
        "nonzero": Tag("Share of the units of a code that are not zero.", SHARE, "above 0"),
        "size": Tag("Root mean square of the units of a code.", "1", "above a tenth of the noise, where there is one"),
        "unpredicted": Tag("Squared distance of inferred codes from the encoder's, over their squared length.",
                           "ratio", "falling, below 1"),
        "gap": Tag("Duality gap of the inferred codes, over the squared length of what they code: how far they may be "
                   "from the best ones.", "ratio", "below 1e-3"),
        "auroc_noise": Tag("Share of pairs in which the free energy of a test image is below that of one whose pixels "
                           "are each of another image.", SHARE, "near 1"),
        "auroc_halves": Tag("The same of images that are made of halves of two.", SHARE, "near 1"),
        "nearer": Tag("Share of test images to which one of eight completions is nearer than the mean of many.",
                      SHARE, "above 0.8"),
        "nearest": Tag("Squared distance of that one over that of the mean.", "ratio", "well below 1"),
        "completions": Tag("A part of an image, and what several codes complete it to.", PICTURE,
                           "images, all different"),
        "penalties": Tag("Free energies of images, and of what is none, by the penalty of inference.", PICTURE,
                         "images below the others at the training's penalty"),
        "atoms": Tag("What the units of a linear or convolutional decoder add to an image.", PICTURE,
                     "strokes and edges, not noise"),
        "*": Tag("A picture of the latent space.", PICTURE),
    },
    "learn": {
        "loss": Tag("The loss that is minimised; of one objective only are two comparable.",
                    "the objective's own", "falling"),
        "lr": Tag("Learning rate.", "1", "as scheduled"),
        "grad_norm": Tag("Norm of the gradient before it is clipped.", "loss over weight", "level, without jumps"),
        "accuracy": Tag("Share of positives that no negative is nearer than.",
                        SHARE, "rising, above 1/(1 + negatives)"),
        "auroc": Tag("Share of the negatives that lie above their positive.", SHARE, "rising from 0.5"),
        "positive_share": Tag("Share of the positive in the softmax over it and all negatives.", SHARE, "rising"),
        "effective_negatives": Tag("Negatives that count, by their softmax weights.",
                                   "negatives", "many, slowly falling"),
        "false_negative_share": Tag("Share of the negatives that are of the query's own image.",
                                    SHARE, "0 where masked"),
        "queue_age": Tag("Steps since the negatives in queue or bank were written, in the mean.", "steps", "level"),
        "key_distance": Tag("Distance of the momentum encoder's weights from the encoder's, over the latter's norm.",
                            "ratio", "small, falling at the end"),
        "variance_loss": Tag("What the deviations of embeddings lack of 1, mean over dimensions, of both views.",
                             "deviations, 0 to 2", "falling towards 0"),
        "covariance_loss": Tag("Squared covariances of a dimension with all others, in the mean, of both views.",
                               "squared variances", "falling"),
        "redundancy_loss": Tag("Squared correlations of the first view's dimensions with others of the second.",
                               "summed squared correlations", "falling"),
        "sigreg": Tag("Distance of the embeddings' characteristic function from that of normal ones, times the images "
                      "of a batch.", "Epps-Pulley statistic", "falling towards 1"),
        "online_images": Tag("Training images that the encoder is evaluated on while it learns.", "images"),
    },
    "neighbours": {"": Tag("Test images, and beside each the nearest others.", PICTURE, "neighbours of one class")},
    "ops": {
        "restarts": Tag("Starts after the first one.", "starts", "0"),
        "lost_steps": Tag("Steps that were computed twice for starts that were cut off.", "steps", "few"),
        "lost_s": Tag("Seconds that those steps took.", "seconds", "few"),
        "preempt_save_s": Tag("Seconds from a signal to the checkpoint.",
                              "seconds", "less than the scheduler's grace"),
    },
    "protocol": {"": Tag("How the probe's numbers were got.", "text")},
    "range": {"*": Tag("An end of the band about the mean of that name: one deviation below or above.", SHARE)},
    "reading": {"": Tag("Where to look for what, and what each tag means.", "text")},
    "reconstructions": {"": Tag("Test images and what the model makes of them.", PICTURE, "alike")},
    "samples": {"": Tag("What the model draws from noise.", PICTURE, "images like those trained on, all different")},
    "chains": {
        "data": Tag("Test images as the model takes them.", PICTURE),
        "fresh": Tag("Where chains from noise end, after all temperatures.", PICTURE, "images like chains/data"),
        "particles": Tag("The training's own chains, after more sweeps.", PICTURE, "images like chains/data"),
        "filters": Tag("Weights of hidden units to pixels.", PICTURE, "strokes and edges, not noise"),
    },
    "jigsaw": {"": Tag("Nine shuffled patches of an image.", PICTURE, "parts that can be made out")},
    "speed": {
        "images_per_s": Tag("Images trained on, over all ranks.", "images a second", "level"),
        "wait_share": Tag("Share of a step that it waits for images.", SHARE, "below 0.1, else add threads"),
        "read": Tag("Reading of shards, summed over threads or workers.", SECONDS),
        "decode": Tag("Decoding of images, summed over threads or workers.", SECONDS),
        "crop": Tag("Cropping, summed over threads or workers.", SECONDS),
        "transfer": Tag("Copying of batches to the device.", SECONDS),
        "augment": Tag("Photometric augmentation, on the device or summed over threads or workers.", SECONDS),
        "wait": Tag("Waiting of a step for its images.", SECONDS, "near 0"),
        "wait_most": Tag("Waiting for images of the rank that waits longest.", SECONDS, "near 0"),
        "wait_rank": Tag("Which rank that is.", "rank", "no rank always"),
        "compute": Tag("Forward and backward pass of this rank.", SECONDS),
        "compute_most": Tag("Forward and backward pass of the slowest rank.", SECONDS, "near speed/compute_least"),
        "compute_least": Tag("Forward and backward pass of the fastest rank.", SECONDS),
        "compute_rank": Tag("Which rank is the slowest.", "rank", "no rank always"),
        "bad": Tag("Images so far that could not be read.", "images", "0"),
    },
    "vae": {
        "elbo": Tag("Evidence lower bound of the log-likelihood of an image.", "nats an image", "rising"),
        "recon": Tag("Negative log-likelihood of an image given its latent.", "nats an image", "falling"),
        "kl": Tag("Information that the latent holds of an image.", "nats an image", "well above 0, then level"),
        "active_units": Tag("Latent units whose mean varies with the image.", "units", "most of the latent"),
        "iwae": Tag("Bound of the log-likelihood of an image by several draws of its latent.", "nats an image",
                    "rising, above vae/elbo"),
        "information": Tag("How much a draw of the latent tells which image of the batch it is of.", "nats an image",
                           "near the log of the batch's size"),
        "aggregate_kl": Tag("Divergence of the mixture of the batch's latents from the prior; with vae/information it "
                            "is vae/kl.", "nats", "level"),
        "means_rms": Tag("Root of the mean squared mean of q(z|x), over images and units.", "the latent's own",
                         "level, below 1"),
        "kl_units": Tag("KL divergence of each latent unit from the prior, mean over test images.",
                        "nats, a histogram over units", "few units near 0"),
    },
    "views": {"": Tag("What the encoder is given of some images.",
                      PICTURE, "the same thing can be seen in both views")},
}  # fmt: skip
"""By family, and there by name; "": the family is the whole tag; "*": any name that is not listed."""


@cache
def find(tag: str) -> Tag | None:
    """What is declared of a tag; None where nothing is."""
    family, _, name = tag.partition("/")
    names = TAGS.get(family, {})
    return names.get(name) or next((t for pattern, t in names.items() if pattern and fnmatchcase(name, pattern)), None)


def describe(tag: str) -> str:
    """One sentence, unit, what is healthy; empty for a tag that is not declared, as one of a user's own objective."""
    return str(find(tag) or "")


def markdown() -> str:
    """All tags as tables, a family each."""
    lines = ["# What is shown, tag by tag", "", "Written by `python -m pipeline.tags` from `pipeline/tags.py`.", ""]
    for family, names in sorted(TAGS.items()):
        lines += [f"## {family}", "", "| tag | what it is | unit | healthy |", "|---|---|---|---|"]
        lines += [f"| `{f'{family}/{n}'.rstrip('/')}` | {t.text} | {t.unit} | {t.healthy} |" for n, t in names.items()]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown(), end="")
