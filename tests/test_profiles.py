"""Profile files."""

import pytest
from builders import make_profile

from precalloc import Profile
from precalloc.errors import ProfileError


def test_torn_profile_is_refused_with_a_remedy(tmp_path):
    path = make_profile().save(tmp_path / "profile.npz")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ProfileError, match=r"profile.npz is not a precalloc profile .* Profile the model again"):
        Profile.load(path)
