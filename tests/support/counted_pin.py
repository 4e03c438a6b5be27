"""A PIN source that counts how often it was asked."""

from hsm_signer.device.pin.pin import Login, Pin, PinRequest


class CountedPin:
    """Gives a PIN, or raises an error, and counts how often it was asked.

    Attributes:
        times: how often it was asked.
    """

    def __init__(self, answer: str | BaseException, *, attended: bool = True) -> None:
        self.description = self.identity = "a test"
        self.attended = attended
        self.times = 0
        self._answer = answer

    def __call__(self, request: PinRequest) -> Login:
        self.times += 1
        if isinstance(self._answer, BaseException):
            raise self._answer
        return Pin(self._answer)
