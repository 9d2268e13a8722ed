"""A valid request is accepted; the exceptions are those that a schema cannot express, each with its reason.

With API_KEY, the server is one that asks for keys.
"""

import os
import re

import schemathesis
from schemathesis import GenerationMode

# What is said in the answer, by code. The first is about what was sent before, the second about what is there now.
STATES = {"idempotency_conflict", "precondition_failed", "not_cancellable", "not_found", "too_many_webhooks"}
BEYOND_SCHEMAS = (
    # Schemas count characters.
    "bytes long",
    # A return names another update than itself, and one update comes once.
    "must be another update",
    "comes twice",
    # Which vendors there are is configuration.
    "no vendor of that id is configured",
    # Two quotes are an empty key.
    "characters long, has 0",
    # What an address is, and which ones are called.
    "must be a URL",
    "must begin with https://",
    "must not contain",
    "must name a host",
    "is a private, local or reserved address",
    # Whether the letter at which a page ended is there still.
    "not in the queue any more",
    # How many bytes a base64 has.
    "the base64 of 24 to 64 random bytes",
)

# To a schema, 21.0 is an integer.
FLOATING_POINT = re.compile(r"must be a whole number.*, is -?[0-9.]+(e[+-]?[0-9]+)?$")


@schemathesis.check
def valid_is_refused_only_for_what_cannot_be_described(ctx, response, case):
    meta = case.meta
    if meta is None or meta.generation.mode is not GenerationMode.POSITIVE:
        return None
    if response.status_code < 400 or response.status_code == 503:
        return None
    problem = response.json()
    details = [error["detail"] for error in problem.get("errors", [])] or [problem["detail"]]
    # Which keys there are is not described.
    if problem["code"] in STATES or (problem["code"] == "invalid_key" and case.path == "/login"):
        return None
    if problem["code"] in {"validation_failed", "invalid_parameter"} and all(
        any(beyond in detail for beyond in BEYOND_SCHEMAS) or FLOATING_POINT.search(detail) for detail in details
    ):
        return None
    raise AssertionError(f"refused although it is as described: {response.status_code} {details}")


@schemathesis.hook
def before_load_schema(context, raw_schema):
    """A description is for installations with and without keys, and says that a key may be left out. Here it may not, and
    that a request without one is refused is only tried where the description says so. What a browser keeps counts for pages of this server alone."""
    if "API_KEY" not in os.environ:
        return
    for operations in raw_schema["paths"].values():
        for operation in operations.values():
            operation["security"] = [needed for needed in operation["security"] if "apiKey" in needed]
