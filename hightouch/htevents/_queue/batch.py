"""A batch: encoded messages on their way to the server."""

import json
from operator import itemgetter
from typing import Any, Dict, List, Optional, Sequence, Tuple


class Batch:
    """Events that are delivered in one request.

    :ivar items: the events, oldest first: tuples of the JSON, the monotonic time at which the
        event was accepted, and its place in the store, which only the store understands
    :ivar owner: ident of the thread that delivers it; None while no thread does
    :ivar outcome: True when it was delivered, False when it was refused; None until the
        callbacks are told
    :ivar counted: whether the ledger has counted the outcome
    """

    __slots__ = ('items', 'owner', 'outcome', 'counted')

    def __init__(self, items: Sequence[Any] = (), owner: Optional[int] = None) -> None:
        self.items: List[Any] = list(items)
        self.owner = owner
        self.outcome: Optional[bool] = None
        self.counted = False

    @property
    def bodies(self) -> List[bytes]:
        return list(map(itemgetter(0), self.items))

    @property
    def accepted_at(self) -> float:
        """The monotonic time at which its oldest event was accepted."""
        accepted_at: float = self.items[0][1]
        return accepted_at

    def messages(self) -> List[Dict[str, Any]]:
        """Decode the messages, as they are on the wire."""
        return [json.loads(body.decode('utf-8')) for body in self.bodies]

    def halves(self) -> Tuple['Batch', 'Batch']:
        middle = len(self.items) // 2
        return (
            Batch(self.items[:middle], self.owner),
            Batch(self.items[middle:], self.owner),
        )

    def divided(self, chosen: Sequence[bool]) -> Tuple['Batch', 'Batch']:
        """Make a batch of the chosen messages, and one of the others."""
        pairs = list(zip(self.items, chosen))
        return (
            Batch([item for item, wanted in pairs if wanted], self.owner),
            Batch([item for item, wanted in pairs if not wanted], self.owner),
        )

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        return '<Batch of %d>' % len(self)
