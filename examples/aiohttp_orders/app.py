"""The orders service: who may order what. Runs in worker processes, apart from the web application."""

import sqlite3
from contextlib import closing

from pydantic import BaseModel, PositiveInt

from busline import Bus, Context

TABLE = "orders.db"

bus = Bus(service="orders")


class CreateOrder(BaseModel):
    sku: str
    qty: PositiveInt


class Order(BaseModel):
    id: str
    sku: str
    qty: int


@bus.error("orders.sold_out")
class SoldOut(Exception):
    """There is no more of it. Arrives at the caller as itself."""


@bus.handler("orders.create")
def create(cmd: CreateOrder, ctx: Context) -> Order:
    """A plain function runs in a thread, so it may block. The message's id is the order's: again changes nothing."""
    if cmd.sku == "unicorn":
        raise SoldOut(f"we have no {cmd.sku}")
    order = Order(id=ctx.id, sku=cmd.sku, qty=cmd.qty)
    with closing(sqlite3.connect(TABLE, timeout=10)) as db, db:
        db.execute("CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY, sku TEXT, qty INTEGER)")
        db.execute("INSERT OR REPLACE INTO orders VALUES (:id, :sku, :qty)", order.model_dump())
    return order


@bus.handler("orders.list")
def list_orders() -> list[Order]:
    with closing(sqlite3.connect(TABLE, timeout=10)) as db:
        if not db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'orders'").fetchone():
            return []
        rows = db.execute("SELECT id, sku, qty FROM orders ORDER BY rowid").fetchall()
    return [Order(id=id, sku=sku, qty=qty) for id, sku, qty in rows]
