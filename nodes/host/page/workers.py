"""What the panel of CLEAR Multi-GPU shows of other machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..cluster.member import Member


def workers_payload(members: Sequence[Member] | None) -> dict[str, Any]:
    """{"listening": whether they can join, "workers": of each its "name" as in "clear_attention.bands" messages, its
    "cards", the "link" to this machine in bits a second (null until it is measured), "rows" and "of": its part of the
    last forward in rows of tokens (0 for none), and "problem": why it takes no part, "" where it does}.

    members: None where nothing listens.
    """
    workers = [
        {
            "name": member.name,
            "cards": [card.name for card in member.hello.cards],
            "link": None if member.link is None else 8 * member.link.bytes_per_second,
            "rows": member.dealt.rows,
            "of": member.dealt.of,
            "problem": member.problem or member.dealt.left_out,
        }
        for member in members or ()
    ]
    return {"listening": members is not None, "workers": workers}
