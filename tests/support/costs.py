"""A machine whose times and sizes are known."""

SECONDS = {
    "trainer": 10.0,
    "trainer+pieces": 8.0,
    "trainer+settings": 9.5,
    "trainer+compiled": 6.25,
    "ours": 5.0,
}
FACTOR = {"main": 1.0, "full": 1.25, "first-half": 0.7}
FLOPS = {"main": 4e12, "full": 5e12, "first-half": 3e12}


def pretend(engine, plan, shape):
    """A machine of 1e12 FLOPs a second, twice as fast with our engine."""
    if engine == "sgemm":
        return {"sgemm_flops": 1e12}
    kind = engine.removesuffix(" (exact allocator)")
    return {
        "step_seconds": [9 * SECONDS[kind], FACTOR[plan] * SECONDS[kind], 0.1],
        "first_loss": 10.9,
        "peak_bytes": int(4e9 if kind == "ours" else 8e9),
    }
