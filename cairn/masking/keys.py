"""Keys, signatures and sealed boxes of secure aggregation, every primitive from `cryptography`.

A site draws 32 secret bytes once a session; all else that it needs is derived from them, so that a site that was
killed gives the same answer to the same message, byte for byte.
"""

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cairn.errors import IdentityError, MaskingError
from cairn.masking.canonical import VERSION

KEY_BYTES = 32


def derive(secret: bytes, salt: bytes, what: str) -> bytes:
    """Derive 32 bytes for one purpose: HKDF-SHA256 (RFC 5869) with `cairn.masking/1 <what>` as info."""
    return HKDF(SHA256(), length=KEY_BYTES, salt=salt, info=f"{VERSION} {what}".encode()).derive(secret)


def public_half(private: bytes) -> bytes:
    """Compute the X25519 public key of 32 private bytes."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agree(private: bytes, public: bytes, salt: bytes, what: str) -> bytes:
    """Agree on 32 bytes with the holder of the other key: X25519 (RFC 7748), then `derive`.

    Raises MaskingError for a public key with which no secret can be agreed (a point of small order).
    """
    try:
        shared = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise MaskingError("a public key in the roster is not a usable X25519 key; leave its site out") from error
    return derive(shared, salt, what)


def check_public(public: bytes) -> None:
    """Refuse a public key with which nobody can agree on a secret. Raises MaskingError."""
    agree(bytes(KEY_BYTES), public, b"", "check")


def keystream(key: bytes, size: int) -> bytes:
    """Expand 32 bytes into as many pseudo-random bytes as are asked for: AES-256-CTR from counter 0."""
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(size))


def seal(key: bytes, plain: bytes, context: bytes) -> bytes:
    """Encrypt under a key that is used for this one message: AES-256-GCM, nonce 0."""
    return AESGCM(key).encrypt(bytes(12), plain, context)


def unseal(key: bytes, sealed: bytes, context: bytes, who: str) -> bytes:
    """Decrypt what `seal` made. Raises MaskingError, naming who was to have sealed it, for anything else."""
    try:
        return AESGCM(key).decrypt(bytes(12), sealed, context)
    except (InvalidTag, ValueError) as error:
        raise MaskingError(
            f"a sealed share of {who} was altered or is not for this site; leave that site out"
        ) from error


def sign(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """Sign with the key of the site's certificate: ECDSA, SHA-256, deterministic nonces (RFC 6979)."""
    return key.sign(message, ec.ECDSA(SHA256(), deterministic_signing=True))


def verify(key: ec.EllipticCurvePublicKey, message: bytes, signature: bytes, who: str) -> None:
    """Check a signature. Raises IdentityError, naming who was to have signed."""
    try:
        key.verify(signature, message, ec.ECDSA(SHA256()))
    except InvalidSignature as error:
        raise IdentityError(
            f"a message in the name of {who} does not carry its signature; stop this session"
        ) from error
