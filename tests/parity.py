"""How the parity tests compare with recorded numbers."""

import numpy as np


def close(name, ours, theirs, atol=0.0, rtol=0.0):
    """Every number is near; prints how near."""
    error = np.abs(np.asarray(ours) - theirs).max()
    print(f"{name}: max abs {error:.1e}")
    np.testing.assert_allclose(ours, theirs, atol=atol, rtol=rtol, err_msg=name)


def close_l2(name, ours, theirs, limit):
    """The relative L2 error is under a limit; prints it."""
    error = np.linalg.norm(np.asarray(ours) - theirs) / np.linalg.norm(theirs)
    print(f"{name}: relative L2 {error:.1e}")
    assert error < limit, name
