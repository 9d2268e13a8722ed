-- Dead letters that an operator has dropped: written in the transaction that cancels what they asked for, and before
-- the broker forgets them, so that no message goes without a trace.
CREATE TABLE dropped_letters (
    -- Derived from the letter: one that is dropped again, since its process died before the broker was told, is this row.
    id uuid PRIMARY KEY,
    queue text NOT NULL CHECK (queue IN ('orders_dlq', 'vendor_sync_dlq')),
    -- Empty where its producer gave it none.
    message_id text NOT NULL,
    reason text,
    error text,
    headers jsonb NOT NULL CHECK (jsonb_typeof(headers) = 'object'),
    -- The message as it was. What is no text for PostgreSQL (other bytes than UTF-8, U+0000) is written in hexadecimal.
    body text NOT NULL,
    body_encoding text NOT NULL CHECK (body_encoding IN ('utf-8', 'hex')),
    dropped_at timestamptz NOT NULL DEFAULT now(),
    -- Who asked: "cli:" and the account's name, or "http:" and the caller's address.
    dropped_by text NOT NULL CHECK (octet_length(dropped_by) BETWEEN 1 AND 255)
);
CREATE INDEX dropped_letters_newest ON dropped_letters (dropped_at DESC);
CREATE INDEX dropped_letters_message ON dropped_letters (message_id);
