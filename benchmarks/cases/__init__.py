"""One case for each component, by its name: a function of the sizes that makes it."""

from benchmarks.cases import elementwise, images, layers, losses, positions

CASES = {
    **elementwise.CASES,
    **positions.CASES,
    **layers.CASES,
    **images.CASES,
    **losses.CASES,
}
