"""A PIN source that knows how often it was asked."""

from hsm_signer.device.pin.pin import Login, Pin, PinRequest


class CountedPin:
    """Gives a PIN, and counts how often it was asked."""

    description = identity = "a test"
    attended = True

    def __init__(self, text: str) -> None:
        self.times = 0
        self._text = text

    def __call__(self, request: PinRequest) -> Login:
        self.times += 1
        return Pin(self._text)
