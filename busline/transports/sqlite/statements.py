"""The SQL of the hot path and of whatever two modules need. Each message statement names the index it must use."""

from __future__ import annotations

INSERT = (
    "INSERT INTO message (queue, priority, due, topic, meta, headers, correlation_id, reply_to, ttl, expendable,"
    " expires, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
PEEK_READY = "SELECT 1 FROM message INDEXED BY ready WHERE queue = ? AND due IS NULL LIMIT 1"
PEEK_HEAD = "SELECT id FROM message INDEXED BY ready WHERE queue = ? AND due IS NULL ORDER BY priority DESC, id LIMIT 1"
CLAIM = (
    "UPDATE message SET token = ?, owner = ?, due = ?, deliveries = deliveries + 1 WHERE id IN ("
    " SELECT id FROM message INDEXED BY ready WHERE queue = ? AND due IS NULL ORDER BY priority DESC, id LIMIT ?)"
    " RETURNING id, deliveries, priority, topic, meta, headers, correlation_id, reply_to, ttl, expendable, expires,"
    " body"
)
ACK = "DELETE FROM message WHERE id = ? AND token = ?"
RELEASE = (
    "UPDATE message SET due = ?, token = NULL, owner = NULL, deliveries = deliveries - 1 WHERE id = ? AND token = ?"
)
EXTEND = "UPDATE message SET due = ? WHERE id = ? AND token = ?"

NEXT_DELAYED = (
    "SELECT due FROM message INDEXED BY delayed WHERE queue = ? AND due IS NOT NULL AND token IS NULL"
    " ORDER BY due LIMIT 1"
)
NEXT_LEASED = "SELECT due FROM message INDEXED BY leased WHERE queue = ? AND token IS NOT NULL ORDER BY due LIMIT 1"
PROMOTE_DELAYED = (
    "UPDATE message SET due = NULL WHERE id IN ("
    " SELECT id FROM message INDEXED BY delayed"
    " WHERE queue = ? AND due IS NOT NULL AND token IS NULL AND due <= ? ORDER BY due LIMIT ?)"
)
END_LEASES = (
    "UPDATE message SET due = NULL, token = NULL, owner = NULL WHERE id IN ("
    " SELECT id FROM message INDEXED BY leased WHERE queue = ? AND token IS NOT NULL AND due <= ? LIMIT ?)"
)

END_LEASES_OF_OWNER = (
    "UPDATE message SET due = NULL, token = NULL, owner = NULL, deliveries = deliveries - ? WHERE id IN ("
    " SELECT id FROM message INDEXED BY leased WHERE token IS NOT NULL AND owner = ?) RETURNING queue"
)

COUNT_WAITING = "SELECT waiting FROM queue WHERE id = ?"
PEEK_EXPIRED = (
    "SELECT 1 FROM message INDEXED BY expiring"
    " WHERE expendable AND expires <= ? AND token IS NULL ORDER BY expires LIMIT 1"
)
EXPIRE = (
    "DELETE FROM message WHERE id IN ("
    " SELECT id FROM message INDEXED BY expiring WHERE expendable AND expires <= ? AND token IS NULL LIMIT ?)"
)
DROP_LATE = (
    "DELETE FROM message WHERE expires <= ? AND id IN ("
    " SELECT id FROM message INDEXED BY ready WHERE queue = ? AND due IS NULL ORDER BY priority DESC, id LIMIT ?)"
)

SET_WAITING = "UPDATE consumer SET waiting = ? WHERE queue = ? AND process = ?"
FIND_WAITING = (
    "SELECT process, waiting FROM consumer WHERE queue = ? AND waiting > 0 ORDER BY process = ?, waiting DESC LIMIT ?"
)
PICK_TIMEKEEPER = "SELECT process FROM consumer WHERE queue = ? ORDER BY process = ? DESC, waiting DESC LIMIT 1"

DELETE_READY = (
    "DELETE FROM message WHERE id IN (SELECT id FROM message INDEXED BY ready WHERE queue = ? AND due IS NULL LIMIT ?)"
)
DELETE_DELAYED = (
    "DELETE FROM message WHERE id IN ("
    " SELECT id FROM message INDEXED BY delayed WHERE queue = ? AND due IS NOT NULL AND token IS NULL LIMIT ?)"
)
DELETE_LEASED = (
    "DELETE FROM message WHERE id IN ("
    " SELECT id FROM message INDEXED BY leased WHERE queue = ? AND token IS NOT NULL LIMIT ?)"
)
