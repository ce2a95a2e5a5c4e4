"""Who is in the federation: certificates, invitations, revocation."""
