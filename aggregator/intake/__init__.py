"""The way in: uploads, blobs, the ledger's sums."""
