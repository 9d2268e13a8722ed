//! Vendors' tables as they really are: under names and of types that are the vendor's, with rows that nobody would sell.

use diesel_async::SimpleAsyncConnection;
use serde_json::{Value, json};
use stockctl::pg;

use crate::support::{ELSEWHERE, Elsewhere, Ended, Servers, Shop, ShopOptions};

/// What we hold of all vendors' stock, a product a line, in the order of bytes.
async fn shelves(shop: &Shop) -> String {
    shop.text(
        "SELECT string_agg(format('%s %s: %s%s', product_id, name, on_hand,
             CASE WHEN open_delta <> 0 THEN format(' and %s open', open_delta) END), E'\\n' ORDER BY product_id) AS t
         FROM stock",
    )
    .await
}

async fn sync(elsewhere: &Elsewhere) -> Ended {
    elsewhere.shop.run(&["sync", "--once", "--json"]).await
}

/// The lines of the log, without what is another at each run: what they are about, and what they say.
fn logged(ended: &Ended) -> String {
    let mut lines = Vec::new();
    for line in ended.stderr.lines() {
        match serde_json::from_str::<Value>(line) {
            Ok(entry) => {
                for key in ["level", "vendor", "table", "rows", "message"] {
                    lines.push(format!("{key} {}", entry[key]));
                }
            }
            Err(_) => lines.push(line.to_owned()),
        }
    }
    lines.join("\n")
}

/// What a person is told of a sync that fails; `GET /vendors` tells in a word which kind of failure it was.
async fn refusal(elsewhere: &Elsewhere) -> String {
    let ended = elsewhere.shop.run(&["sync", "--once"]).await;
    assert_eq!(ended.code, Some(5), "{ended:?}");
    let told = ended
        .stderr
        .trim()
        .replace(&elsewhere.role, "[role]")
        .replace("error: vendor elsewhere: ", "");
    let (_, answer) = elsewhere.shop.get("/vendors").await;
    let noted = answer["vendors"][0]["lastSyncError"]
        .as_str()
        .expect("an error");
    assert!(
        [
            "unreadable_table",
            "unreadable_rows",
            "repeated_product",
            "replica"
        ]
        .contains(&noted),
        "{noted}"
    );
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_of_any_type_is_read_as_text_and_in_the_order_of_bytes() {
    // A chunk for each row, so that an order that is not ours would show at every bound.
    let elsewhere = Elsewhere::empty("[sync]\nchunk_rows = 1\n").await;
    elsewhere.run("CREATE EXTENSION citext SCHEMA shop").await;
    let mut held = Vec::new();
    for (of_type, ids) in [
        (
            "text COLLATE \"und-x-icu\"",
            "('b'), ('B'), ('a-'), ('aa'), ('é'), ('a')",
        ),
        ("varchar(8)", "('b'), ('B'), ('a-'), ('aa'), ('é'), ('a')"),
        ("shop.citext", "('b'), ('A'), ('a-'), ('aa'), ('É')"),
        ("integer", "(2), (10), (-1), (100)"),
        ("bigint", "(2), (9223372036854775807)"),
        ("numeric", "(2), (10.5), (10)"),
        (
            "uuid",
            "('f0000000-0000-0000-0000-000000000000'), ('0A000000-0000-0000-0000-000000000000')",
        ),
        ("char(4)", "('b'), ('a b'), ('a')"),
    ] {
        elsewhere
            .create(&format!(
                "CREATE TABLE shop.items (sku {of_type}, title text, quantity integer);
                 INSERT INTO shop.items (sku) VALUES {ids};
                 UPDATE shop.items SET title = '', quantity = 1"
            ))
            .await;
        // Twice: the second run compares what it reads with what it holds.
        for _ in 0..2 {
            let ended = sync(&elsewhere).await;
            assert_eq!(ended.code, Some(0), "{of_type}: {ended:?}");
        }
        let ids = elsewhere
            .shop
            .text("SELECT string_agg(product_id, ' < ' ORDER BY product_id) AS t FROM stock WHERE on_hand = 1")
            .await;
        held.push(format!("{of_type}: {ids}"));
    }
    insta::assert_snapshot!(held.join("\n"), @r#"
    text COLLATE "und-x-icu": B < a < a- < aa < b < é
    varchar(8): B < a < a- < aa < b < é
    shop.citext: A < a- < aa < b < É
    integer: -1 < 10 < 100 < 2
    bigint: 2 < 9223372036854775807
    numeric: 10 < 10.5 < 2
    uuid: 0a000000-0000-0000-0000-000000000000 < f0000000-0000-0000-0000-000000000000
    char(4): a < a b < b
    "#);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_not_in_utf_8_is_read_in_our_order_of_bytes() {
    let mut elsewhere = Elsewhere::empty("[sync]\nchunk_rows = 1\n").await;
    // In WIN1252 the sign of the euro is 80 and é is E9; in UTF-8 they are E2 82 AC and C3 A9.
    let url = Servers::get()
        .await
        .create_empty_database_as(
            "TEMPLATE template0 ENCODING 'WIN1252' LC_COLLATE 'C' LC_CTYPE 'C'",
        )
        .await;
    let settings = pg::Settings {
        url: url.clone(),
        pool_size: 1,
        connect_timeout: std::time::Duration::from_secs(10),
        statement_timeout: std::time::Duration::from_secs(30),
    };
    let mut connection = pg::connect(&settings).await.expect("reachable");
    connection
        .batch_execute(
            "CREATE SCHEMA shop; CREATE TABLE shop.items (sku text PRIMARY KEY, title text, quantity integer);
             INSERT INTO shop.items VALUES ('z', 'Zoë', 1), ('é', 'é', 2), ('€', '€', 3), ('ÿ', 'ÿ', 4)",
        )
        .await
        .expect("executes");
    let reader = elsewhere.reader_url.clone();
    elsewhere
        .shop
        .reconfigure(|text| text.replace(&reader, &url));
    for _ in 0..2 {
        elsewhere.shop.sync().await;
        let shelves = shelves(&elsewhere.shop).await;
        insta::allow_duplicates!(insta::assert_snapshot!(shelves, @"
        z Zoë: 1
        é é: 2
        ÿ ÿ: 4
        € €: 3
        "));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stock_of_any_type_that_is_written_whole_is_read_and_null_is_nothing() {
    let elsewhere = Elsewhere::empty("").await;
    // A default under which 12345.5 would be written 12345.
    elsewhere
        .run(&format!(
            "ALTER ROLE {} SET extra_float_digits = -10",
            elsewhere.role
        ))
        .await;
    let mut held = Vec::new();
    for of_type in [
        "smallint",
        "integer",
        "bigint",
        "numeric",
        "numeric(12, 3)",
        "real",
        "double precision",
        "text",
    ] {
        elsewhere
            .create(&format!(
                "CREATE TABLE shop.items (sku text, title text, quantity {of_type});
                 INSERT INTO shop.items VALUES ('a', 'a', 5), ('b', NULL, 0), ('c', 'c', -3), ('d', 'd', NULL)"
            ))
            .await;
        let ended = sync(&elsewhere).await;
        assert_eq!(ended.code, Some(0), "{of_type}: {ended:?}");
        assert!(
            ended.stdout.contains("\"skipped\":0"),
            "{of_type}: {ended:?}"
        );
        let shelves = shelves(&elsewhere.shop).await.replace('\n', ", ");
        held.push(format!("{of_type}: {shelves}"));
        elsewhere.run("UPDATE shop.items SET quantity = '7'").await;
        elsewhere.shop.sync().await;
    }
    insta::assert_snapshot!(held.join("\n"), @"
    smallint: a a: 5, b : 0, c c: -3, d d: 0
    integer: a a: 5, b : 0, c c: -3, d d: 0
    bigint: a a: 5, b : 0, c c: -3, d d: 0
    numeric: a a: 5, b : 0, c c: -3, d d: 0
    numeric(12, 3): a a: 5, b : 0, c c: -3, d d: 0
    real: a a: 5, b : 0, c c: -3, d d: 0
    double precision: a a: 5, b : 0, c c: -3, d d: 0
    text: a a: 5, b : 0, c c: -3, d d: 0
    ");
    elsewhere
        .create(
            "CREATE TABLE shop.items (sku text, title text, quantity double precision);
             INSERT INTO shop.items VALUES ('a', 'a', 12345.5), ('b', 'b', 999999999999999)",
        )
        .await;
    let ended = sync(&elsewhere).await;
    assert!(ended.stdout.contains("\"skipped\":1"), "{ended:?}");
    assert_eq!(
        shelves(&elsewhere.shop).await,
        "a a: 0\nb b: 999999999999999\nc c: 0\nd d: 0"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_whose_id_or_stock_cannot_be_ours_is_passed_over_with_a_warning_and_not_sold() {
    let elsewhere = Elsewhere::empty("[sync]\nchunk_rows = 2\n").await;
    elsewhere
        .create(
            "CREATE TABLE shop.items (sku text, title text, quantity numeric);
             INSERT INTO shop.items VALUES ('a', 'a', 5), ('b', 'b', 6), ('c', 'c', 7), ('d', 'd', 8)",
        )
        .await;
    elsewhere.shop.sync().await;
    // What was known and can no longer be read is not sold on; what is new and cannot be read is not known.
    elsewhere
        .run(
            "UPDATE shop.items SET quantity = 2.5 WHERE sku = 'b'; UPDATE shop.items SET quantity = 1e15 WHERE sku = 'd';
             INSERT INTO shop.items VALUES ('e', 'e', 1e15 + 1), ('f', 'f', 1e40), ('g', 'g', 'NaN'), ('h', 'h', 0.1),
                 (NULL, 'nameless', 1), (NULL, 'nameless', 1), ('', 'empty', 1), (repeat('x', 201), 'long', 1),
                 (repeat('é', 100), repeat('é', 1001), 1)",
        )
        .await;
    let ended = sync(&elsewhere).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    insta::assert_snapshot!(ended.stdout, @r#"{"outcome":"done","products":4,"read":4,"skipped":9,"updatesClosed":0,"vendorId":"elsewhere","written":3}"#);
    insta::assert_snapshot!(logged(&ended), @r#"
    level "WARN"
    vendor "elsewhere"
    table "shop.items"
    rows 9
    message "passed over, and nothing of them is sold: the id \"\" must not be empty; product \"b\" has the stock \"2.5\", which is not a whole number; product \"e\" has the stock 1000000000000001, which is not within -1000000000000000 to 1000000000000000; …"
    "#);
    let shelves = shelves(&elsewhere.shop).await;
    insta::assert_snapshot!(shelves.replace(&"é".repeat(1000), "[1000 é]").replace(&"é".repeat(100), "[100 é]"), @"
    a a: 5
    b b: 0
    c c: 7
    d d: 1000000000000000
    [100 é] [1000 é]: 1
    ");
    let ended = elsewhere.shop.run(&["sync", "--once"]).await;
    insta::assert_snapshot!(ended.stdout, @"elsewhere: 4 products, 0 written, 0 updates found applied, 9 passed over because their id or stock cannot be ours");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_which_no_row_can_be_read_is_refused() {
    let elsewhere = Elsewhere::empty("").await;
    let _api = elsewhere.shop.serve().await;
    elsewhere
        .create("CREATE TABLE shop.items (sku text, title text, quantity text)")
        .await;
    elsewhere
        .run("INSERT INTO shop.items SELECT n, n, 'plenty of ' || n FROM generate_series(1, 9) n")
        .await;
    insta::assert_snapshot!(refusal(&elsewhere).await, @r#"its table shop.items has no row that can be read, out of 9: product "1" has the stock "plenty of 1", which is not a whole number; product "2" has the stock "plenty of 2", which is not a whole number; product "3" has the stock "plenty of 3", which is not a whole number; …; check vendors.elsewhere.id_column and stock_column"#);
    // Allowing an empty catalogue does not allow this one.
    let ended = elsewhere
        .shop
        .run(&["sync", "--once", "--allow-empty"])
        .await;
    assert_eq!(ended.code, Some(5), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_comes_twice_ends_the_run_and_neither_row_counts() {
    let elsewhere = Elsewhere::empty("[sync]\nchunk_rows = 2\n").await;
    let _api = elsewhere.shop.serve().await;
    elsewhere
        .create(
            "CREATE TABLE shop.items (sku text, title text, quantity integer);
             INSERT INTO shop.items VALUES ('a', 'a', 1), ('b', 'b', 2), ('c', 'c', 3), ('d', 'd', 4)",
        )
        .await;
    elsewhere.shop.sync().await;
    // Once within a chunk, and once over the bound of two.
    for (twice, other) in [("c", "b"), ("b", "c")] {
        elsewhere
            .run(&format!(
                "UPDATE shop.items SET quantity = 30; INSERT INTO shop.items VALUES ('{twice}', 'again', 99)"
            ))
            .await;
        let told = refusal(&elsewhere).await;
        insta::allow_duplicates!(
            insta::assert_snapshot!(told.replace(&format!("{twice:?}"), "[twice]"), @"its table shop.items has the id [twice] more than once, or not in the order of bytes; nothing tells which row counts: make the ids unique, or let vendors.elsewhere.table name a view that has each once")
        );
        for product in [twice, other] {
            let (_, shown) = elsewhere.shop.get(&format!("/products/{product}")).await;
            let stock = if product == "b" { 2 } else { 3 };
            assert_eq!(shown["available"], stock, "{shown}");
        }
        elsewhere
            .run("DELETE FROM shop.items WHERE title = 'again'; UPDATE shop.items SET quantity = ascii(sku) - 96")
            .await;
        elsewhere.shop.sync().await;
    }
    let (_, answer) = elsewhere.shop.get("/vendors").await;
    assert_eq!(answer["vendors"][0]["lastSyncError"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_or_may_not_be_read_is_told_with_what_to_do() {
    let elsewhere = Elsewhere::empty("").await;
    let _api = elsewhere.shop.serve().await;
    let mut told = vec![refusal(&elsewhere).await];
    elsewhere
        .create("CREATE TABLE shop.items (sku text, title text)")
        .await;
    told.push(refusal(&elsewhere).await);
    let role = elsewhere.role.clone();
    for change in [
        format!(
            "ALTER TABLE shop.items ADD quantity integer; REVOKE SELECT ON shop.items FROM {role}"
        ),
        format!("GRANT SELECT (sku, title) ON shop.items TO {role}"),
        format!("GRANT SELECT ON shop.items TO {role}; REVOKE USAGE ON SCHEMA shop FROM {role}"),
    ] {
        elsewhere.run(&change).await;
        told.push(refusal(&elsewhere).await);
    }
    insta::assert_snapshot!(told.join("\n"), @r#"
    its table shop.items cannot be read: PostgreSQL refused a statement: relation "shop.items" does not exist; check vendors.elsewhere.table, id_column, name_column and stock_column, and that its role has USAGE on the schema and SELECT on the table
    its table shop.items cannot be read: PostgreSQL refused a statement: column "quantity" does not exist; check vendors.elsewhere.table, id_column, name_column and stock_column, and that its role has USAGE on the schema and SELECT on the table
    its table shop.items cannot be read: PostgreSQL refused a statement: permission denied for table items; check vendors.elsewhere.table, id_column, name_column and stock_column, and that its role has USAGE on the schema and SELECT on the table
    its table shop.items cannot be read: PostgreSQL refused a statement: permission denied for table items; check vendors.elsewhere.table, id_column, name_column and stock_column, and that its role has USAGE on the schema and SELECT on the table
    its table shop.items cannot be read: PostgreSQL refused a statement: permission denied for schema shop; check vendors.elsewhere.table, id_column, name_column and stock_column, and that its role has USAGE on the schema and SELECT on the table
    "#);
    // The three columns are enough.
    elsewhere
        .run(&format!(
            "ALTER TABLE shop.items ADD secret text; INSERT INTO shop.items VALUES ('a', 'a', 1, 'x');
             GRANT USAGE ON SCHEMA shop TO {role}; REVOKE SELECT ON shop.items FROM {role};
             GRANT SELECT (sku, title, quantity) ON shop.items TO {role}"
        ))
        .await;
    elsewhere.shop.sync().await;
    assert_eq!(elsewhere.shop.available("a").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_is_not_there_is_told_with_what_to_do() {
    let shop = Shop::with(ShopOptions {
        vendors: vec![("vendorA", vec![("p1", 10)])],
        config: String::new(),
    })
    .await;
    shop.run_at("vendorA", "DROP TABLE stock_ledger").await;
    let ended = shop.run(&["sync", "--once"]).await;
    assert_eq!(ended.code, Some(5), "{ended:?}");
    insta::assert_snapshot!(ended.stderr, @r#"error: vendor vendorA: its ledger, the table stock_ledger, cannot be read: PostgreSQL refused a statement: relation "stock_ledger" does not exist; run `stockctl migrate --vendors` and grant its role SELECT on it, or set vendors.vendorA.ledger = false"#);
    assert_eq!(shop.count("SELECT count(*) AS n FROM stock").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_with_anything_in_it_is_a_name_and_never_sql() {
    let mut elsewhere = Elsewhere::empty("").await;
    // In TOML and in SQL; what would be executed, were it not quoted, removes the table.
    let evil = "x\"; SET search_path = shop; DROP TABLE prey; --";
    let quoted = evil.replace('"', "\"\"");
    elsewhere
        .create(&format!(
            "CREATE TABLE shop.prey (id text); CREATE TABLE shop.\"{quoted}\" (\"{quoted}\" text, \"Title\" text, \"a b\" integer);
             INSERT INTO shop.\"{quoted}\" VALUES ('a', 'A', 1); ALTER TABLE shop.\"{quoted}\" OWNER TO {role};
             ALTER TABLE shop.prey OWNER TO {role}; CREATE TABLE shop.items (id text)",
            role = elsewhere.role
        ))
        .await;
    let evil = evil.replace('"', "\\\"");
    elsewhere.shop.reconfigure(|text| {
        text.replace("\"shop.items\"", &format!("\"shop.{evil}\""))
            .replace("\"sku\"", &format!("\"{evil}\""))
            .replace("\"title\"", "\"Title\"")
            .replace("\"quantity\"", "\"a b\"")
    });
    elsewhere.shop.sync().await;
    assert_eq!(shelves(&elsewhere.shop).await, "a A: 1");
    let prey = "SELECT count(*) AS n FROM pg_tables WHERE tablename = 'prey'";
    assert_eq!(elsewhere.shop.count_at(ELSEWHERE, prey).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_makes_a_catalogue_of_what_is_none() {
    let elsewhere = Elsewhere::empty("").await;
    elsewhere
        .run(
            "CREATE TABLE shop.bins (article text, bin integer, pieces integer);
             INSERT INTO shop.bins VALUES ('a', 1, 5), ('a', 2, 6), ('b', 1, 7)",
        )
        .await;
    elsewhere
        .run(&format!(
            "CREATE VIEW shop.items AS SELECT article AS sku, upper(article) AS title, sum(pieces) AS quantity
                 FROM shop.bins GROUP BY article;
             GRANT SELECT ON shop.items TO {}",
            elsewhere.role
        ))
        .await;
    elsewhere.shop.sync().await;
    insta::assert_snapshot!(shelves(&elsewhere.shop).await, @"
    a A: 11
    b B: 7
    ");
}

/// A sync's report, and that we hold what the vendor lists.
async fn assert_follows(elsewhere: &Elsewhere, after: &str) -> Value {
    let ended = sync(elsewhere).await;
    assert_eq!(ended.code, Some(0), "{after}: {ended:?}");
    let held = elsewhere
        .shop
        .text(
            "SELECT string_agg(format('%s %s %s', product_id, name, on_hand), E'\\n' ORDER BY product_id) AS t FROM stock
             WHERE on_hand <> 0 AND blocked_run IS NULL",
        )
        .await;
    let listed = elsewhere
        .shop
        .text_at(
            ELSEWHERE,
            "SELECT string_agg(format('%s %s %s', sku, left(coalesce(title, ''), 1000), quantity), E'\\n'
                 ORDER BY sku COLLATE \"C\") AS t
             FROM shop.items WHERE quantity <> 0 AND sku NOT LIKE E'%\\n%'",
        )
        .await;
    assert!(
        held == listed,
        "{after}: {:?}",
        held.lines()
            .filter(|line| !listed.lines().any(|listed| listed == *line))
            .chain(
                listed
                    .lines()
                    .filter(|line| !held.lines().any(|held| held == *line))
            )
            .collect::<Vec<_>>()
    );
    serde_json::from_str(&ended.stdout).expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_catalogue_that_hardly_changed_only_what_may_differ_is_read() {
    // Chunks so small that what both sides read meets at bounds.
    let elsewhere = Elsewhere::empty("[sync]\nchunk_rows = 2\n").await;
    let _api = elsewhere.shop.serve().await;
    elsewhere
        .create(
            "CREATE TABLE shop.items (sku text, title text, quantity integer);
             INSERT INTO shop.items SELECT 'p' || n, 'Product ' || n, n FROM generate_series(1, 600) n",
        )
        .await;
    let first = assert_follows(&elsewhere, "the first load").await;
    assert_eq!(
        (&first["read"], &first["written"]),
        (&json!(600), &json!(600))
    );
    let same = assert_follows(&elsewhere, "nothing").await;
    assert_eq!(
        same,
        json!({"vendorId": "elsewhere", "outcome": "done", "products": 600, "read": 0, "written": 0,
               "updatesClosed": 0, "skipped": 0})
    );
    for (change, products, written) in [
        ("UPDATE shop.items SET quantity = 1000 WHERE sku = 'p1'", 600, 1),
        ("UPDATE shop.items SET title = 'Another' WHERE sku = 'p600'", 600, 1),
        ("UPDATE shop.items SET title = NULL WHERE sku IN ('p2', 'p3')", 600, 2),
        ("UPDATE shop.items SET quantity = NULL WHERE sku IN ('p4', 'p5')", 600, 2),
        // In Rust as in SQL a character is one of Unicode.
        ("UPDATE shop.items SET title = repeat('é', 1000) WHERE sku = 'p6'", 600, 1),
        ("UPDATE shop.items SET title = repeat('é', 1500) WHERE sku = 'p7'", 600, 1),
        ("DELETE FROM shop.items WHERE sku IN ('p1', 'p300', 'p99', 'p999')", 597, 3),
        (
            "INSERT INTO shop.items VALUES ('0', 'first', 1), ('p4000', 'between', 2), ('é', 'last', 3),
                 ('zero', 'new and not there', 0)",
            601,
            4,
        ),
        ("INSERT INTO shop.items VALUES ('p1', 'Product 1', 1)", 602, 1),
    ] {
        elsewhere.run(change).await;
        let report = assert_follows(&elsewhere, change).await;
        let read = report["read"].as_u64().expect("a number");
        assert!(read >= written && read < 60, "{change}: {report}");
        assert_eq!(
            (&report["products"], &report["written"]),
            (&json!(products), &json!(written)),
            "{change}: {report}"
        );
        let again = assert_follows(&elsewhere, change).await;
        assert_eq!(again["written"], 0, "{change}: {again}");
    }
    // A row that cannot be sold is told of by each run.
    elsewhere
        .run("INSERT INTO shop.items VALUES (NULL, 'no id', 1), (E'p\\n', 'no id of ours', 1), (E'p\\n', 'no id of ours', 1)")
        .await;
    for _ in 0..2 {
        let report = assert_follows(&elsewhere, "rows that cannot be sold").await;
        assert_eq!(
            (&report["products"], &report["written"], &report["skipped"]),
            (&json!(602), &json!(0), &json!(3)),
            "{report}"
        );
    }
    elsewhere
        .run("DELETE FROM shop.items WHERE sku IS NULL OR sku LIKE E'%\\n'")
        .await;
    // What the vendor has rejected is sold again once a run has seen it, changed or not.
    elsewhere
        .shop
        .run_here("UPDATE stock SET blocked_run = 1 WHERE product_id IN ('p8', 'p9')")
        .await;
    let report = assert_follows(&elsewhere, "a rejection").await;
    assert_eq!(report["written"], 2, "{report}");
    // The very same row twice changes no figure; that two rows have one id is no less wrong.
    elsewhere
        .run("INSERT INTO shop.items VALUES ('p10', 'Product 10', 10)")
        .await;
    assert!(refusal(&elsewhere).await.contains("\"p10\" more than once"));
    elsewhere
        .run("DELETE FROM shop.items WHERE sku = 'p10'; INSERT INTO shop.items VALUES ('p10', 'Product 10', 10)")
        .await;
    let report = assert_follows(&elsewhere, "one of the two is gone").await;
    assert_eq!(report["written"], 0, "{report}");
    // Where much has changed, or the same stock may be written in several ways, everything is read.
    elsewhere
        .run("UPDATE shop.items SET quantity = quantity + 1 WHERE quantity % 2 = 0")
        .await;
    let report = assert_follows(&elsewhere, "half of the stock").await;
    assert_eq!(report["read"], 602, "{report}");
    elsewhere
        .run("ALTER TABLE shop.items ALTER quantity TYPE numeric")
        .await;
    let report = assert_follows(&elsewhere, "another type").await;
    assert_eq!(
        (&report["read"], &report["written"]),
        (&json!(602), &json!(0))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_any_make_is_compared_whole() {
    let elsewhere = Elsewhere::empty("").await;
    let columns = "(sku text, title text, quantity integer)";
    let rows = "SELECT 'p' || n AS sku, 'Product ' || n AS title, n AS quantity FROM generate_series(1, 3000) n";
    for (made_of, create) in [
        // Eight rows a block, so that they come in several parts; the columns have names that a query may have too.
        (
            "many blocks",
            format!(
                "CREATE TABLE shop.items {columns} WITH (fillfactor = 10); INSERT INTO shop.items {rows};
                 ALTER TABLE shop.items ADD first tid, ADD after tid"
            ),
        ),
        (
            "partitions",
            format!(
                "CREATE TABLE shop.items {columns} PARTITION BY RANGE (quantity);
                 CREATE TABLE shop.low PARTITION OF shop.items FOR VALUES FROM (MINVALUE) TO (1500);
                 CREATE TABLE shop.high PARTITION OF shop.items FOR VALUES FROM (1500) TO (MAXVALUE);
                 INSERT INTO shop.items {rows}"
            ),
        ),
        (
            "a table that another one inherits from",
            format!(
                "CREATE TABLE shop.items {columns};
                 CREATE TABLE shop.more (LIKE shop.items) INHERITS (shop.items);
                 INSERT INTO shop.items {rows} WHERE n <= 10;
                 INSERT INTO shop.more {rows} WHERE n > 10"
            ),
        ),
        (
            "rows that a policy lets through",
            format!(
                "CREATE TABLE shop.items {columns}; INSERT INTO shop.items {rows};
                 ALTER TABLE shop.items ENABLE ROW LEVEL SECURITY;
                 CREATE POLICY all_rows ON shop.items USING (quantity > 0)"
            ),
        ),
        (
            "a view",
            format!(
                "CREATE TABLE shop.all_items AS {rows}; CREATE VIEW shop.items AS SELECT * FROM shop.all_items"
            ),
        ),
    ] {
        elsewhere.create(&create).await;
        assert_follows(&elsewhere, made_of).await;
        let same = assert_follows(&elsewhere, made_of).await;
        assert_eq!(
            (&same["products"], &same["read"]),
            (&json!(3000), &json!(0)),
            "{made_of}: {same}"
        );
        elsewhere
            .run(
                "UPDATE shop.items SET quantity = 4000 WHERE sku IN ('p1', 'p2999');
                 DELETE FROM shop.items WHERE sku IN ('p7', 'p3000')",
            )
            .await;
        let changed = assert_follows(&elsewhere, made_of).await;
        assert_eq!(
            (&changed["products"], &changed["written"]),
            (&json!(2998), &json!(4)),
            "{made_of}: {changed}"
        );
    }
}
