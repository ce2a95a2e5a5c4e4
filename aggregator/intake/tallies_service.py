"""The service that takes tallies and gives merged ones back: frames messages, `Uploads` decides."""

from collections.abc import Iterator

import grpc
from sqlalchemy import Engine

from aggregator import database, tables
from aggregator.intake.store import BlobStore
from aggregator.intake.uploads import MESSAGE, Uploads
from cairn.errors import ChecksumMismatch, OffsetMismatch, StudyError, UnknownPlan
from cairn.rpc import caller
from cairn.v1 import tallies_pb2, tallies_pb2_grpc

DIGEST_BYTES = 32


class TalliesService(tallies_pb2_grpc.TalliesServicer):
    """cairn.v1.Tallies; who uploads is in the caller's certificate and nowhere else."""

    def __init__(self, engine: Engine, store: BlobStore, uploads: Uploads) -> None:
        self._engine = engine
        self._store = store
        self._uploads = uploads

    def QueryUpload(  # noqa: N802 - the name in the proto
        self, request: tallies_pb2.QueryUploadRequest, context: grpc.ServicerContext
    ) -> tallies_pb2.QueryUploadResponse:
        """Say how much of an upload is committed."""
        plan, digest = plan_name(request.fingerprint), _digest(request.digest)
        found = self._uploads.query(plan, caller(context).identity.name, digest)
        return tallies_pb2.QueryUploadResponse(committed_size=found.size, complete=found.complete)

    def Upload(  # noqa: N802
        self, request_iterator: Iterator[tallies_pb2.UploadRequest], context: grpc.ServicerContext
    ) -> tallies_pb2.UploadResponse:
        """Append messages to an upload; the one with the digest is the last."""
        site = caller(context).identity.name
        plan = ""
        for request in request_iterator:
            if not plan:
                plan = plan_name(request.fingerprint)
            if request.digest:
                digest = _digest(request.digest)
                size = self._uploads.finish(plan, site, request.offset, request.data, digest, request.receipt)
                return tallies_pb2.UploadResponse(committed_size=size)
            self._uploads.append(plan, site, request.offset, request.data)
        if not plan:
            raise OffsetMismatch("the upload brought no message; begin with the plan's fingerprint", 0)
        return tallies_pb2.UploadResponse(committed_size=self._uploads.committed(plan, site))

    def FetchMerged(  # noqa: N802
        self,
        request: tallies_pb2.FetchMergedRequest,
        context: grpc.ServicerContext,  # noqa: ARG002 - gRPC's signature
    ) -> Iterator[tallies_pb2.FetchMergedResponse]:
        """Stream the merged tally of a closed stage."""
        plan = plan_name(request.fingerprint)
        with database.reading(self._engine) as session:
            row, merge = session.get(tables.Plan, plan), session.get(tables.Merge, plan)
            if row is None:
                raise UnknownPlan(f"no plan {plan[:12]} was published here")
            if merge is None:
                raise StudyError(f"the stage {row.stage} of {row.study} is not merged yet; ask again when it is closed")
        with self._store.open(merge.digest) as file:
            while data := file.read(MESSAGE):
                yield tallies_pb2.FetchMergedResponse(data=data)


def plan_name(fingerprint: bytes) -> str:
    """Write a fingerprint as the database's key. Raises UnknownPlan when it is not one."""
    if len(fingerprint) != DIGEST_BYTES:
        raise UnknownPlan(f"a fingerprint of {len(fingerprint)} bytes names no plan; {DIGEST_BYTES} are expected")
    return fingerprint.hex()


def _digest(digest: bytes) -> str:
    if len(digest) != DIGEST_BYTES:
        raise ChecksumMismatch(f"a digest of {len(digest)} bytes is no SHA-256; {DIGEST_BYTES} are expected")
    return digest.hex()
