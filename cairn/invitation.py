"""An invitation: all that a newcomer needs to enrol, as one line of text that an operator can hand over."""

import base64
import binascii

from pydantic import BaseModel, ConfigDict

from cairn.errors import BadToken

PREFIX = "cairn-invitation-1."


class Invitation(BaseModel):
    """Who is invited, where to, and the one-time token.

    address            host:port of the aggregator's mutual-TLS port
    enrolment_address  host:port where certificates are issued
    ca_pem             the federation's CA certificate; pins the server before the newcomer has anything to trust
    token              the one-time secret
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    federation: str
    name: str
    role: str
    address: str
    enrolment_address: str
    ca_pem: str
    token: str

    def text(self) -> str:
        """Write the invitation as one line of text."""
        return PREFIX + base64.urlsafe_b64encode(self.model_dump_json().encode()).decode().rstrip("=")


def parse(text: str) -> Invitation:
    """Read an invitation from its line of text. Raises BadToken when it is not one, or not whole."""
    _, found, body = text.strip().rpartition(PREFIX)
    try:
        return Invitation.model_validate_json(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)) if found else "")
    except (ValueError, binascii.Error) as error:
        raise BadToken(
            "this is not a whole invitation; copy the line that `cairn aggregator invite` printed"
        ) from error
