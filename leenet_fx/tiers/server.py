"""A tier that listens for the samples of the tier before."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable

from leenet_fx.errors import EarlyExitError, first_line
from leenet_fx.tiers.chain import Chain, NextTier
from leenet_fx.tiers.link import Link, LinkError, check_positive
from leenet_fx.tiers.messages import Message, MessageError
from leenet_fx.tiers.tier import Tier

logger = logging.getLogger("leenet_fx")

MAX_CONNECTIONS = 32


class TierServer:
    """Answers the tiers before, each in a thread of its own.

    Each has a connection of its own to the next tier; stages run one batch at a time.
    """

    def __init__(
        self, tier: Tier, following: NextTier | None = None, *, timeout: float = 30.0
    ) -> None:
        """Check the next tier.

        Args:
            tier: that this process runs.
            following: where its remaining samples go; None for the last tier.
            timeout: seconds in which further bytes of a message must arrive.

        Raises:
            InputError, LinkError: as `Chain` raises.
        """
        self.tier = tier
        self.following = following
        self.timeout = check_positive(timeout, "timeout (seconds)")
        chain = Chain(tier, following)
        self.stages = [(tier.first, tier.stop), *chain.following]
        chain.close()
        self._free = threading.Semaphore(MAX_CONNECTIONS)

    def serve(self, listening: socket.socket, on_start: Callable[[], None] = lambda: None) -> None:
        """Answer until the socket is shut down.

        Args:
            listening: from `listen`; closed at the end.
            on_start: called before the first connection is accepted.
        """
        with listening:
            on_start()
            while True:
                self._free.acquire()
                try:
                    connected, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=self._serve, args=(connected,), daemon=True).start()

    def _serve(self, connected: socket.socket) -> None:
        link = Link(connected, timeout=self.timeout)
        chain: Chain | None = None
        try:
            hello = link.receive(self.timeout)
            reason = self._refusal(hello)
            if reason is not None:
                link.send(Message("refused", {"reason": reason}))
                return
            if "bandwidth" in hello.fields:
                link.bandwidth = check_positive(hello.number("bandwidth"), "bandwidth (Mbit/s)")
            chain = Chain(self.tier, self.following)
            link.send(Message("ready", {"stages": [list(pair) for pair in self.stages]}))
            while True:
                link.send(self._reply(chain, link.receive()))
        except LinkError as error:
            # The tier before ends a connection by closing it.
            logger.debug("%s", error)
        except EarlyExitError as error:
            logger.warning("A connection is closed: %s", error)
            self._tell(link, error)
        except Exception as error:
            # Other connections are still answered.
            logger.exception("A connection is closed")
            self._tell(link, error)
        finally:
            if chain is not None:
                chain.close()
            link.close()
            self._free.release()

    def _reply(self, chain: Chain, message: Message) -> Message:
        """Return the answers to samples, or the reason why there are none."""
        if message.kind != "samples":
            raise MessageError(f"Expected a message 'samples', got '{message.kind}'.")
        active = self.tier.before.samples(message)
        try:
            return chain.answer(active, message.number("seconds")).message()
        except LinkError as error:
            return Message("failed", {"reason": str(error)})

    def _refusal(self, hello: Message) -> str | None:
        """Return why a tier may not send samples; None if it may."""
        if hello.kind != "hello":
            raise MessageError(f"Expected a message 'hello', got '{hello.kind}'.")
        own = self.tier.identity
        network, policy = (str(hello.fields.get(name)) for name in ("network", "policy"))
        if network != own.network:
            return (
                f"another network runs here (fingerprint {own.network[:16]}, yours is "
                f"{network[:16]}): open the same folder on all tiers."
            )
        if policy != own.policy:
            return (
                f"another policy decides here ({own.policy[:300]}, yours is {policy[:300]}): use "
                "the same operating point on all tiers."
            )
        if hello.fields.get("stage") != self.tier.first:
            return (
                f"this tier begins with stage {self.tier.first}, and yours ends before stage "
                f"{hello.fields.get('stage')}."
            )
        return None

    @staticmethod
    def _tell(link: Link, error: Exception) -> None:
        try:
            link.send(Message("failed", {"reason": first_line(error)}))
        except EarlyExitError as gone:
            logger.debug("%s", gone)
