//! The books of a shop: what must hold when everything is done.

use std::collections::BTreeMap;

use super::{Shop, eventually};

impl Shop {
    /// Waits until nothing is on its way any more.
    pub(crate) async fn settled(&self) {
        eventually("nothing is on its way", || async {
            let left = self
                .count(
                    "SELECT (SELECT count(*) FROM orders WHERE status = 'pending')
                          + (SELECT count(*) FROM stock_updates WHERE state = 'open')
                          + (SELECT count(*) FROM outbox) AS n",
                )
                .await;
            (left == 0).then_some(())
        })
        .await;
    }

    /// Checks that what was ordered, what we have written down and what the vendors have are the same. `initial` is what
    /// the vendors had: (vendor, product, stock).
    pub(crate) async fn check_books(&self, initial: &[(&str, &str, i64)]) {
        let ordered = self
            .count(
                "SELECT coalesce(sum((line->>'quantity')::bigint), 0)::bigint AS n
                 FROM orders, jsonb_array_elements(lines) line WHERE status = 'confirmed'",
            )
            .await;
        let taken = self
            .count("SELECT coalesce(-sum(delta), 0)::bigint AS n FROM stock_updates WHERE state IN ('acknowledged', 'applied')")
            .await;
        assert_eq!(taken, ordered, "what was confirmed was taken, and once");
        let lines_apart = self
            .count(
                "SELECT count(*) AS n FROM
                   (SELECT id, line->>'productId' AS product, sum((line->>'quantity')::bigint) AS quantity
                    FROM orders, jsonb_array_elements(lines) line WHERE status = 'confirmed' GROUP BY 1, 2) o
                 FULL JOIN
                   (SELECT order_id AS id, product_id AS product, -sum(delta) AS quantity
                    FROM stock_updates WHERE state IN ('acknowledged', 'applied') GROUP BY 1, 2
                    HAVING sum(delta) <> 0) u
                 USING (id, product) WHERE o.quantity IS DISTINCT FROM u.quantity",
            )
            .await;
        assert_eq!(lines_apart, 0, "each line was taken whole");
        let mut vendors: BTreeMap<&str, ()> = BTreeMap::new();
        for (vendor, product, stock) in initial {
            vendors.insert(vendor, ());
            let taken = self
                .count(&format!(
                    "SELECT coalesce(-sum(delta), 0)::bigint AS n FROM stock_updates
                     WHERE state IN ('acknowledged', 'applied') AND vendor_id = '{vendor}' AND product_id = '{product}'"
                ))
                .await;
            assert_eq!(
                self.stock_at(vendor, product).await,
                stock - taken,
                "{vendor} has of {product} what was not sold"
            );
        }
        for vendor in vendors.keys() {
            // A digest of (id, product, delta, outcome) on both sides, without carrying thousands of rows around.
            let digest = "sum(hashtext(concat_ws(' ', id, product_id, delta))::bigint)";
            let ours = self
                .count(&format!(
                    "SELECT coalesce({digest}, 0)::bigint AS n FROM stock_updates
                     WHERE vendor_id = '{vendor}' AND state IN ('acknowledged', 'applied')"
                ))
                .await;
            let theirs = self
                .count_at(
                    vendor,
                    &format!(
                        "SELECT coalesce({digest}, 0)::bigint AS n FROM stock_ledger WHERE outcome = 'applied'"
                    ),
                )
                .await;
            assert_eq!(ours, theirs, "the ledger of {vendor} has our updates");
        }
        let apart = self
            .count(
                "SELECT count(*) AS n FROM stock s WHERE open_delta <> (
                     SELECT coalesce(sum(delta), 0) FROM stock_updates u
                     WHERE u.product_id = s.product_id AND u.vendor_id = s.vendor_id
                       AND (state = 'acknowledged' OR state = 'open' AND delta < 0))",
            )
            .await;
        assert_eq!(apart, 0, "the open figures are those of the open updates");
    }

    /// Syncs, and checks that our figures are the vendors' own, with nothing open.
    pub(crate) async fn in_step(&self, initial: &[(&str, &str, i64)]) {
        self.sync().await;
        self.check_books(initial).await;
        for (vendor, product, _) in initial {
            let available = self
                .count(&format!(
                    "SELECT on_hand + open_delta AS n FROM stock WHERE vendor_id = '{vendor}' AND product_id = '{product}'"
                ))
                .await;
            assert_eq!(
                available,
                self.stock_at(vendor, product).await,
                "{product} at {vendor}"
            );
        }
        assert_eq!(
            self.count("SELECT count(*) AS n FROM stock_updates WHERE closed_at IS NULL")
                .await,
            0
        );
        self.audit_is_clean().await;
    }

    /// Runs `stockctl audit` as an operator does.
    pub(crate) async fn audit_is_clean(&self) {
        let ended = self.run(&["audit"]).await;
        assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    }
}
