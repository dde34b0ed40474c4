"""Make any batch loop resumable: what is finished is never lost and never done twice."""

from ._attempt import Attempt, current_attempt
from ._batch import ResumableBatch
from ._checkpoint import Checkpoint
from ._errors import (
    BatchStopped,
    CheckpointDamaged,
    CheckpointLocked,
    ConfigMismatch,
    DurabilityUnknown,
    ItemFailed,
    LockstitchError,
    RateLimited,
    SerializationFailed,
    UsageError,
)
from ._guard import RateLimitGuard
from ._model import ErrorInfo, Failure, Limit, Plan, Record, Summary
from ._resumable import resumable
from ._retry import Backoff, RetryPolicy
from ._serializers import JSONSerializer, Serializer

__all__ = [
    "Attempt",
    "Backoff",
    "BatchStopped",
    "Checkpoint",
    "CheckpointDamaged",
    "CheckpointLocked",
    "ConfigMismatch",
    "DurabilityUnknown",
    "ErrorInfo",
    "Failure",
    "ItemFailed",
    "JSONSerializer",
    "Limit",
    "LockstitchError",
    "Plan",
    "RateLimitGuard",
    "RateLimited",
    "Record",
    "ResumableBatch",
    "RetryPolicy",
    "SerializationFailed",
    "Serializer",
    "Summary",
    "UsageError",
    "current_attempt",
    "resumable",
]
