"""Places an order and reads it with the client that was generated from the description."""

import os
import sys
import uuid

from stockctl_client import AuthenticatedClient, Client
from stockctl_client.api.orders import get_orders_by_id, post_orders
from stockctl_client.models import Line, Order, OrderRequestOfLines, OrderRequestOfOneProduct, Problem

settings = {"base_url": sys.argv[1], "raise_on_unexpected_status": True, "timeout": 120}
token = os.environ.get("API_KEY")
client = AuthenticatedClient(token=token, **settings) if token else Client(**settings)
key = f"generated-client-{uuid.uuid4()}"
body = OrderRequestOfLines(lines=[Line(product_id="p3", quantity=2)], reference="cart 17")

placed = post_orders.sync_detailed(client=client, body=body, idempotency_key=key, prefer="wait=20")
assert placed.status_code == 200 and isinstance(placed.parsed, Order), placed
assert placed.parsed.status == "confirmed", placed.parsed
again = post_orders.sync_detailed(client=client, body=body, idempotency_key=key)
assert again.headers["Idempotent-Replayed"] == "true", again
assert isinstance(again.parsed, Order) and again.parsed.id == placed.parsed.id, again

read = get_orders_by_id.sync(id=placed.parsed.id, client=client)
assert isinstance(read, Order) and read.id == placed.parsed.id, read
assert [(line.product_id, line.quantity) for line in read.lines] == [("p3", 2)], read
assert read.reference == "cart 17", read

refused = post_orders.sync(client=client, body=OrderRequestOfOneProduct(product_id="p3", quantity=0))
assert isinstance(refused, Problem) and refused.code == "validation_failed", refused
if token:
    unknown = post_orders.sync(client=Client(**settings), body=body)
    assert isinstance(unknown, Problem) and unknown.code == "unauthenticated", unknown
print(f"order {read.id} was placed, replayed and read; a bad one was refused")
