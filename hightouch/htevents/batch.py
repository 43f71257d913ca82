"""A batch: encoded messages on their way to the server."""

import json
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple


class Batch(List[Any]):
    """A list of messages that were encoded when they were tracked.

    To its reader it is a list of dicts. Inside it holds their JSON, which is joined into
    the request as it is; a dict is only made for who asks for one (a callback).

    :ivar accepted_at: monotonic time at which its oldest message was accepted
    :ivar places: where each message lies in the spool, if there is one
    :ivar owner: ident of the thread that delivers it, None while none does
    :ivar claimed: its outcome is being told to the callbacks, and cannot change
    :ivar delivered: what that outcome is
    :ivar counted: it is in the books
    """

    def __init__(
        self,
        bodies: Sequence[bytes],
        accepted_at: float,
        places: Sequence[Any] = (),
    ) -> None:
        super().__init__(bodies)
        self.accepted_at = accepted_at
        self.places = places
        self.owner: Optional[int] = None
        self.claimed = False
        self.delivered = False
        self.counted = False

    # Batches are keys of the queue's books: each is itself and no other.
    __hash__ = object.__hash__  # type: ignore[assignment]

    @property
    def bodies(self) -> List[bytes]:
        return list(super().__iter__())

    def messages(self) -> List[Dict[str, Any]]:
        """Decode the messages, as they are on the wire."""
        return [json.loads(body.decode('utf-8')) for body in super().__iter__()]

    def halves(self) -> Tuple['Batch', 'Batch']:
        middle = len(self) // 2
        return self.divided([True] * middle + [False] * (len(self) - middle))

    def divided(self, chosen: Sequence[bool]) -> Tuple['Batch', 'Batch']:
        """Make a batch of the chosen messages, and one of the others."""
        bodies = self.bodies
        parts = []
        for wanted in (True, False):
            indexes = [at for at, each in enumerate(chosen) if each is wanted]
            places = [self.places[at] for at in indexes] if self.places else ()
            parts.append(
                Batch([bodies[at] for at in indexes], self.accepted_at, places)
            )
        return parts[0], parts[1]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.messages())

    def __getitem__(self, index: Any) -> Any:
        return self.messages()[index]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Batch):
            return self is other
        return self.messages() == other

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __repr__(self) -> str:
        return '<Batch of %d>' % len(self)
