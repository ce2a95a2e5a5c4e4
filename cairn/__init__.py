"""What every party of a Cairn federation must agree on, byte for byte."""

import os

__version__ = "0.2.0"

# gRPC has no setting for the oldest TLS that it speaks. This one names the cipher suites of TLS 1.2 alone (those of 1.3
# are always there), and the one that it leaves needs an RSA certificate, which nobody here has: so 1.3 is all there is.
# It is read when grpc is imported, so it is set before anything of Cairn does that.
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES256-GCM-SHA384"
