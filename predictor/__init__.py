"""Durations: how long an operator, a kernel or a whole engine step takes on a GPU that is not there.

Why it exists: the virtual GPU runs no kernel, so somebody must say how long each one would have taken.
It must never: import another part of Hyperlapse (launches, compositions and kernel-name maps come to it as data),
guess in silence (every duration says where it comes from), or go below the speed-of-light time of the hardware.
Rejected: the estimator that ships with the kernel database. It takes seconds a query and refuses models that it does
not know; its measured tables are read directly instead.

Nothing is imported here, so that `import hyperlapse.predictor` costs nothing; import the modules by name:

    from hyperlapse.predictor.step import StepPredictor
    from hyperlapse.predictor.engine import EnginePredictor
"""
