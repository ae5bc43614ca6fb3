"""The tables and the statements. Each is one step, so that nothing is locked between two of them.

Time is `clock_timestamp()`: the one inside a transaction stands still, and a claimant that has waited for another's
lock must look at the clock afterwards. In READ COMMITTED the condition of an UPDATE is judged on the newest row.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

VERSION = 1
CHANNEL = "busline_job"

TABLES = """
CREATE TABLE {s}.busline_claim (
    key TEXT COLLATE "C" PRIMARY KEY, state TEXT NOT NULL, fingerprint TEXT NOT NULL, token TEXT NOT NULL,
    fence BIGINT NOT NULL, attempt INTEGER NOT NULL, lease_until TIMESTAMPTZ, expires_at TIMESTAMPTZ NOT NULL,
    result BYTEA NOT NULL DEFAULT '', error BYTEA NOT NULL DEFAULT '', outgoing BYTEA NOT NULL DEFAULT '',
    message_id TEXT NOT NULL DEFAULT '', message BYTEA);
CREATE INDEX busline_claim_expiry ON {s}.busline_claim (expires_at);
CREATE INDEX busline_claim_orphans ON {s}.busline_claim (lease_until)
    WHERE state = 'PROCESSING' AND message IS NOT NULL;
CREATE TABLE {s}.busline_job (
    id TEXT COLLATE "C" PRIMARY KEY, topic TEXT NOT NULL, sent_at DOUBLE PRECISION NOT NULL,
    claim TEXT COLLATE "C" NOT NULL, progress BYTEA NOT NULL, cancel_requested BOOLEAN NOT NULL,
    expires_at TIMESTAMPTZ NOT NULL, unique_key TEXT COLLATE "C", unique_until TIMESTAMPTZ NOT NULL,
    message BYTEA NOT NULL);
CREATE INDEX busline_job_expiry ON {s}.busline_job (expires_at);
CREATE INDEX busline_job_sent ON {s}.busline_job (sent_at);
CREATE INDEX busline_job_topic ON {s}.busline_job (topic, sent_at);
CREATE INDEX busline_job_claim ON {s}.busline_job (claim) WHERE claim <> '';
CREATE INDEX busline_job_unique ON {s}.busline_job (unique_key) WHERE unique_key IS NOT NULL;
CREATE TABLE {s}.busline_store (version INTEGER NOT NULL);
INSERT INTO {s}.busline_store (version) VALUES (1);
"""

_NOW = "clock_timestamp()"
_LIVES = f"(c.expires_at > {_NOW} OR c.message IS NOT NULL)"
_IN_FORCE = f"c.key = $1 AND c.token = $2 AND c.fence = $3 AND c.state = 'PROCESSING' AND {_LIVES}"
_JOB = (
    "id, topic, sent_at, message, claim, progress, cancel_requested,"
    " extract(epoch FROM expires_at)::float8 AS expires_at"
)
_TELL = f"told AS (SELECT pg_notify('{CHANNEL}', id) FROM {{s}}.busline_job WHERE claim = $1"
_POINTED = (
    f"pointed AS (UPDATE {{s}}.busline_job SET claim = $1 WHERE id = $6 AND expires_at > {_NOW}"
    " AND EXISTS (SELECT FROM taken) RETURNING id, cancel_requested)"
)
_CANCELLED = f"EXISTS (SELECT FROM {{s}}.busline_job WHERE claim = $1 AND cancel_requested AND expires_at > {_NOW})"
_TAKEN = f"""
, {_POINTED}, told AS (SELECT pg_notify('{CHANNEL}', id) FROM (
    SELECT id FROM pointed UNION SELECT id FROM {{s}}.busline_job WHERE claim = $1) AS j
    WHERE EXISTS (SELECT FROM taken))
SELECT fence, attempt,
    coalesce((SELECT cancel_requested FROM pointed), false) OR {_CANCELLED} AS cancelled,
    (SELECT count(*) FROM told) AS told
FROM taken
"""


@dataclass(frozen=True, slots=True)
class Statements:
    """For the tables of one schema."""

    take: str = (
        f"""
WITH taken AS (
    INSERT INTO {{s}}.busline_claim AS c
        (key, state, fingerprint, token, fence, attempt, lease_until, expires_at, message_id, message)
    VALUES ($1, 'PROCESSING', $2, $3, 1, 1, {_NOW} + make_interval(secs => $4::float8),
        {_NOW} + make_interval(secs => greatest($4::float8, $5::float8)), $7, $8)
    ON CONFLICT (key) DO UPDATE SET
        state = 'PROCESSING', fingerprint = excluded.fingerprint, token = excluded.token,
        fence = CASE WHEN {_LIVES} THEN c.fence + 1 ELSE 1 END,
        attempt = CASE WHEN {_LIVES} THEN c.attempt + 1 ELSE 1 END,
        lease_until = {_NOW} + make_interval(secs => $4::float8),
        expires_at = greatest(c.expires_at, {_NOW} + make_interval(secs => greatest($4::float8, $5::float8))),
        message_id = excluded.message_id, message = excluded.message, result = '', error = '', outgoing = ''
    WHERE NOT {_LIVES} OR (c.fingerprint = excluded.fingerprint AND (c.state = 'PENDING'
        OR (c.state = 'PROCESSING' AND c.message IS NULL AND c.lease_until <= {_NOW})))
    RETURNING fence, attempt)"""
        + _TAKEN
    )
    replace: str = (
        f"""
WITH taken AS (
    UPDATE {{s}}.busline_claim AS c SET token = $3, fence = c.fence + 1, attempt = c.attempt + 1,
        lease_until = {_NOW} + make_interval(secs => $4::float8),
        expires_at = greatest(c.expires_at, {_NOW} + make_interval(secs => greatest($4::float8, $5::float8))),
        message_id = $7, message = $8
    WHERE c.key = $1 AND c.fingerprint = $2 AND c.state = 'PROCESSING' AND c.lease_until <= {_NOW}
        AND c.message IS NOT NULL AND c.message_id = $9
    RETURNING fence, attempt)"""
        + _TAKEN
    )
    look: str = f"""
SELECT state, fingerprint, attempt, extract(epoch FROM c.lease_until - {_NOW})::float8 AS left, result, error,
    outgoing, message_id, message FROM {{s}}.busline_claim AS c WHERE c.key = $1 AND {_LIVES}"""
    point: str = f"""
WITH changed AS (
    UPDATE {{s}}.busline_job SET claim = $1 WHERE id = $2 AND claim <> $1 AND expires_at > {_NOW} RETURNING id)
SELECT pg_notify('{CHANNEL}', id) FROM changed"""
    extend: str = f"""
WITH held AS (
    UPDATE {{s}}.busline_claim AS c SET lease_until = {_NOW} + make_interval(secs => $4::float8),
        expires_at = greatest(c.expires_at, {_NOW} + make_interval(secs => $4::float8))
    WHERE {_IN_FORCE} RETURNING key)
SELECT {_CANCELLED} AS cancelled FROM held"""
    finish: str = f"""
WITH held AS (
    UPDATE {{s}}.busline_claim AS c SET state = $4, result = $5, error = $6, outgoing = $7, token = '',
        lease_until = NULL, expires_at = {_NOW} + make_interval(secs => $8::float8), message_id = '', message = NULL
    WHERE {_IN_FORCE} RETURNING key), {_TELL} AND EXISTS (SELECT FROM held))
SELECT (SELECT count(*) FROM told) AS told FROM held"""
    release: str = f"""
WITH held AS (
    UPDATE {{s}}.busline_claim AS c SET state = 'PENDING', token = '', lease_until = NULL, message_id = '',
        message = NULL
    WHERE {_IN_FORCE} RETURNING key), {_TELL} AND EXISTS (SELECT FROM held))
SELECT (SELECT count(*) FROM told) AS told FROM held"""
    reopen: str = f"""
WITH held AS (
    UPDATE {{s}}.busline_claim AS c SET state = 'PENDING', attempt = 0, error = ''
    WHERE c.key = $1 AND c.state IN ('FAILED', 'CANCELLED') AND {_LIVES} RETURNING key),
forgotten AS (
    UPDATE {{s}}.busline_job SET cancel_requested = false WHERE claim = $1 AND EXISTS (SELECT FROM held) RETURNING id),
told AS (SELECT pg_notify('{CHANNEL}', id) FROM forgotten)
SELECT (SELECT count(*) FROM told) AS told FROM held"""
    read: str = f"""
SELECT key, state, fingerprint, attempt, coalesce(extract(epoch FROM lease_until)::float8, 0) AS lease_until, result,
    error FROM {{s}}.busline_claim AS c WHERE c.key = $1 AND {_LIVES}"""
    orphans: str = f"""
SELECT key, fingerprint, message_id, message, attempt FROM {{s}}.busline_claim
WHERE state = 'PROCESSING' AND message IS NOT NULL AND lease_until <= {_NOW}
    AND ($2::text[] = '{{}}' OR split_part(key, '/', 1) = ANY ($2)) ORDER BY lease_until LIMIT $1"""
    add: str = f"""
INSERT INTO {{s}}.busline_job AS j
    (id, topic, sent_at, message, claim, progress, cancel_requested, expires_at, unique_key, unique_until)
VALUES ($1, $2, $3, $4, $5, $6, $7, {_NOW} + make_interval(secs => $8::float8), $9,
    {_NOW} + make_interval(secs => $10::float8))
ON CONFLICT (id) DO UPDATE SET topic = $2, sent_at = $3, message = $4, claim = $5, progress = $6,
    cancel_requested = $7, expires_at = excluded.expires_at, unique_key = $9, unique_until = excluded.unique_until
WHERE j.expires_at <= {_NOW} RETURNING {_JOB}"""
    lock_unique: str = "SELECT pg_advisory_xact_lock(hashtextextended('busline:' || $1, 0))"
    holder: str = f"""
SELECT {_JOB} FROM {{s}}.busline_job
WHERE unique_key = $1 AND unique_until > {_NOW} AND expires_at > {_NOW} LIMIT 1"""
    drop: str = f"""
WITH dropped AS (DELETE FROM {{s}}.busline_job WHERE id = $1 RETURNING id)
SELECT pg_notify('{CHANNEL}', id) FROM dropped"""
    job: str = f"SELECT {_JOB} FROM {{s}}.busline_job WHERE id = $1 AND expires_at > {_NOW}"
    jobs: str = f"SELECT {_JOB} FROM {{s}}.busline_job WHERE expires_at > {_NOW} ORDER BY sent_at DESC LIMIT $1"
    jobs_of: str = f"""
SELECT {_JOB} FROM {{s}}.busline_job WHERE topic = $2 AND expires_at > {_NOW} ORDER BY sent_at DESC LIMIT $1"""
    progress: str = f"""
WITH changed AS (
    UPDATE {{s}}.busline_job SET progress = $2 WHERE id = $1 AND expires_at > {_NOW} RETURNING id)
SELECT pg_notify('{CHANNEL}', id) FROM changed"""
    cancel: str = f"""
WITH changed AS (
    UPDATE {{s}}.busline_job SET cancel_requested = true WHERE id = $1 AND expires_at > {_NOW} RETURNING *)
SELECT {_JOB}, pg_notify('{CHANNEL}', id) FROM changed"""
    sweep_claims: str = f"""
DELETE FROM {{s}}.busline_claim WHERE key IN (
    SELECT key FROM {{s}}.busline_claim WHERE expires_at <= {_NOW} AND message IS NULL
    ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED)"""
    sweep_jobs: str = f"""
DELETE FROM {{s}}.busline_job WHERE id IN (
    SELECT id FROM {{s}}.busline_job WHERE expires_at <= {_NOW} ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED)"""


def statements(schema: str) -> Statements:
    """All of them, for the tables in `schema`, which is a plain name."""
    texts = {field.name: str(field.default).replace("{s}", f'"{schema}"') for field in fields(Statements)}
    return Statements(**texts)


def escape(text: str) -> str:
    """PostgreSQL's text carries everything but NUL."""
    return text.replace("\\", "\\\\").replace("\0", "\\0") if "\0" in text or "\\" in text else text


def unescape(text: str) -> str:
    """What `escape` was given."""
    if "\\" not in text:
        return text
    return "\\".join(part.replace("\\0", "\0") for part in text.split("\\\\"))
