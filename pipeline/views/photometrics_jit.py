"""The photometric operations for CPUs, compiled by numba, one row of an image at a time so that it stays in the
first-level cache.

The arithmetic is that of `photometrics.apply`, in float32 and in the same order on every CPU. The results of the two
differ by the rounding of the mean for contrast and of the sums in the blur.
"""

import numpy as np

from pipeline.jit import optional_jit

ZERO, HALF, ONE, TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
THREE, FOUR, SIX, SIXTH = np.float32(3), np.float32(4), np.float32(6), np.float32(1 / 6)
LEVELS = np.float32(255)
RED, GREEN, BLUE = np.float32(0.2989), np.float32(0.587), np.float32(0.114)
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0, 1, 2, 3


@optional_jit
def finish(images, factors, order, grey, kernels, solarise, mean, scale, out):
    """Applies all operations to images, uint8 [N, H, W, C], and writes (value - mean) scale, by channel, to ``out``,
    float32 [N, C, H, W].

    The other arguments are fields of `photometrics.Draws`; ``kernels``: the blur's weights at offsets 0, 1, ...
    """
    n, height, width, channels = images.shape
    line = np.empty((channels, width), np.float32)
    pad = kernels.shape[1] - 1
    padded = np.zeros(channels * (width + 2 * pad), np.float32)  # a row of all channels, padded at both ends of each
    rows = np.empty((height, len(padded) - 2 * pad), np.float32)
    sums = np.empty(width, np.float32)
    for i in range(n):
        level, reach = ZERO, 0
        for turn in range(4):
            if order[i, turn] == CONTRAST:
                level = mean_grey(images[i], order[i], factors[i], turn, line, sums)
        while reach + 1 < kernels.shape[1] and kernels[i, reach + 1] > ZERO:
            reach += 1
        for y in range(height):
            load(images[i, y], line)
            jitter(line, order[i], factors[i], level, 4)
            if grey[i] and channels == 3:
                to_grey(line[0], line[1], line[2])
            if reach:
                blur_row(line, kernels[i], reach, padded, rows[y])
            else:
                store(line, solarise[i], mean, scale, out[i], y)
        if reach:
            for y in range(height):
                blur_column(rows, y, kernels[i], reach, padded)
                for c in range(channels):
                    line[c] = padded[c * (width + 2 * pad) : c * (width + 2 * pad) + width]
                store(line, solarise[i], mean, scale, out[i], y)


@optional_jit
def mean_grey(image, order, factors, count, line, sums):
    """The mean luma that the contrast operation keeps: that of the image after the operations before it."""
    sums[:] = ZERO
    for y in range(image.shape[0]):
        load(image[y], line)
        jitter(line, order, factors, ZERO, count)
        add_grey(line, sums)
    total = 0.0
    for x in range(len(sums)):
        total += sums[x]
    return np.float32(total / (image.shape[0] * image.shape[1]))


@optional_jit
def load(pixels, line):
    """Converts a row: uint8 [W, C] -> float32 [C, W] in [0, 1]."""
    if line.shape[0] == 3:
        flat, r, g, b = pixels.reshape(-1), line[0], line[1], line[2]
        for x in range(len(r)):
            r[x] = np.float32(flat[3 * x]) / LEVELS
            g[x] = np.float32(flat[3 * x + 1]) / LEVELS
            b[x] = np.float32(flat[3 * x + 2]) / LEVELS
    else:
        for x in range(line.shape[1]):
            line[0, x] = np.float32(pixels[x, 0]) / LEVELS


@optional_jit
def jitter(line, order, factors, level, count):
    """Applies the first ``count`` of the jitter's operations to a row, in their order."""
    for turn in range(count):
        op = order[turn]
        if op == BRIGHTNESS:
            for c in range(line.shape[0]):
                brightness(line[c], factors[op])
        elif op == CONTRAST:
            for c in range(line.shape[0]):
                contrast(line[c], factors[op], level)
        elif op == SATURATION and line.shape[0] == 3:
            saturation(line[0], line[1], line[2], factors[op])
        elif op == HUE and line.shape[0] == 3:
            hue(line[0], line[1], line[2], factors[op])


@optional_jit
def clamp(x):
    return min(max(x, ZERO), ONE)


@optional_jit
def brightness(line, factor):
    for x in range(len(line)):
        line[x] = clamp(line[x] * factor)


@optional_jit
def contrast(line, factor, level):
    for x in range(len(line)):
        line[x] = clamp(level + factor * (line[x] - level))


@optional_jit
def saturation(r, g, b, factor):
    for x in range(len(r)):
        grey = RED * r[x] + GREEN * g[x] + BLUE * b[x]
        r[x] = clamp(grey + factor * (r[x] - grey))
        g[x] = clamp(grey + factor * (g[x] - grey))
        b[x] = clamp(grey + factor * (b[x] - grey))


@optional_jit
def channel(v, c, h):
    """One channel of a colour with value v and chroma c. ``h``: the hue, in sixths of a turn from the hue opposite to
    the channel's, where the channel is v - c."""
    h = abs(h - SIX * np.floor(h * SIXTH + HALF))
    return v - c * clamp(TWO - h)


@optional_jit
def hue(r, g, b, turn):
    for x in range(len(r)):
        v = max(max(r[x], g[x]), b[x])
        c = v - min(min(r[x], g[x]), b[x])
        d = c if c > ZERO else ONE
        h = FOUR + (r[x] - g[x]) / d
        h = TWO + (b[x] - r[x]) / d if v == g[x] else h
        h = (g[x] - b[x]) / d if v == r[x] else h
        h += SIX * turn
        r[x] = channel(v, c, h + THREE)
        g[x] = channel(v, c, h + ONE)
        b[x] = channel(v, c, h - ONE)


@optional_jit
def to_grey(r, g, b):
    for x in range(len(r)):
        r[x] = RED * r[x] + GREEN * g[x] + BLUE * b[x]
        g[x] = r[x]
        b[x] = r[x]


@optional_jit
def add_grey(line, sums):
    if line.shape[0] == 3:
        r, g, b = line[0], line[1], line[2]
        for x in range(len(sums)):
            sums[x] += RED * r[x] + GREEN * g[x] + BLUE * b[x]
    else:
        for x in range(len(sums)):
            sums[x] += line[0, x]


@optional_jit
def blur_row(line, kernel, reach, padded, out):
    """Blurs one row, float32 [C, W], into ``out``. ``padded`` is a buffer for the row with reflected ends; channels
    start at the same distances from each other in both."""
    width, pad, size = line.shape[1], len(kernel) - 1, len(out)
    for c in range(line.shape[0]):
        at = c * (width + 2 * pad) + pad
        padded[at : at + width] = line[c]
        for k in range(1, reach + 1):
            padded[at - k] = line[c, k]
            padded[at + width - 1 + k] = line[c, width - 1 - k]
    scale_into(padded[pad : pad + size], out, kernel[0])
    for k in range(1, reach, 2):
        add_two_pairs(
            padded[pad - k : pad - k + size], padded[pad + k : pad + k + size], kernel[k],
            padded[pad - k - 1 : pad - k - 1 + size], padded[pad + k + 1 : pad + k + 1 + size], kernel[k + 1], out,
        )  # fmt: skip
    if reach % 2:
        left, right = padded[pad - reach : pad - reach + size], padded[pad + reach : pad + reach + size]
        add_pair(left, right, kernel[reach], out)


@optional_jit
def blur_column(rows, y, kernel, reach, padded):
    """Writes row y of rows [H, W], blurred along H with reflected borders, to the first W entries of ``padded``."""
    last, out = rows.shape[0] - 1, padded[: rows.shape[1]]
    scale_into(rows[y], out, kernel[0])
    for k in range(1, reach, 2):
        near_above, near_below = rows[reflect(y - k, last)], rows[reflect(y + k, last)]
        far_above, far_below = rows[reflect(y - k - 1, last)], rows[reflect(y + k + 1, last)]
        add_two_pairs(near_above, near_below, kernel[k], far_above, far_below, kernel[k + 1], out)
    if reach % 2:
        add_pair(rows[reflect(y - reach, last)], rows[reflect(y + reach, last)], kernel[reach], out)


@optional_jit
def reflect(y, last):
    y = abs(y)
    return y if y <= last else 2 * last - y


@optional_jit
def scale_into(a, out, weight):
    for x in range(len(out)):
        out[x] = weight * a[x]


@optional_jit
def add_pair(a, b, weight, out):
    for x in range(len(out)):
        out[x] += weight * (a[x] + b[x])


@optional_jit
def add_two_pairs(a, b, weight, c, d, other, out):
    """Adds two pairs in one pass over ``out``."""
    for x in range(len(out)):
        out[x] += weight * (a[x] + b[x]) + other * (c[x] + d[x])


@optional_jit
def store(line, solarise, mean, scale, out, y):
    """Writes a row, solarised if asked and normalised, to row y of out [C, H, W]."""
    for c in range(line.shape[0]):
        row, to, m, s = line[c], out[c, y], mean[c], scale[c]
        if solarise:
            for x in range(len(row)):
                row[x] = ONE - row[x] if row[x] >= HALF else row[x]
        for x in range(len(row)):
            to[x] = (row[x] - m) * s
