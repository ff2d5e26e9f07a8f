"""Names of users and groups, for messages."""

from __future__ import annotations

import grp
import pwd


def user_name(uid: int) -> str:
    """A user's name, or ``uid N`` when it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def group_name(gid: int) -> str:
    """A group's name, or ``gid N`` when it has none."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return f"gid {gid}"


def join_command(gid: int, user: str) -> str:
    """What makes ``user`` a member of a group, for a message. ``usermod`` takes no group that has no name."""
    try:
        return f"usermod -aG {grp.getgrgid(gid).gr_name} {user}"
    except KeyError:
        return f"groupadd --gid {gid} NAME && usermod -aG NAME {user} (of a container: --group-add {gid})"
