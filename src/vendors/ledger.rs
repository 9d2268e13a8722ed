//! What an audit reads of a vendor's ledger: everything of ours in one snapshot, and again, fresh, what looked wrong.
//! Nothing is taken for granted of a ledger that is not ours: neither its keys nor its words.

use diesel::sql_types::{Array, BigInt, Integer, Nullable, Text, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use uuid::Uuid;

use crate::domain::audit::{Digest, Recorded};
use crate::domain::ids::UpdateId;
use crate::pg::{Error, Settings, open_long_read};

/// One consistent look at a vendor's ledger, on a connection of its own.
pub struct Snapshot {
    connection: AsyncPgConnection,
    source: Uuid,
    seed: i64,
}

/// Which entries a stream is about.
#[derive(Debug, Clone, Copy)]
pub enum Entries {
    /// All, from the first id up to the second, where there are such.
    Between(Option<Uuid>, Option<Uuid>),
    /// Returns without an effect below an id.
    VainReturnsBelow(Uuid),
}

#[derive(diesel::QueryableByName)]
struct DigestRow {
    #[diesel(sql_type = Integer)]
    part: i32,
    #[diesel(sql_type = BigInt)]
    rows: i64,
    #[diesel(sql_type = BigInt)]
    in_vain: i64,
    #[diesel(sql_type = Text)]
    digest: String,
}

/// The entries of one part of the ids.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// Which part: how many of the bounds are not above its ids.
    pub part: usize,
    /// What they are, but for the following.
    pub digest: Digest,
    /// Returns without an effect.
    pub in_vain: u64,
}

#[derive(diesel::QueryableByName)]
struct Row {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Text)]
    product_id: String,
    #[diesel(sql_type = BigInt)]
    delta: i64,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    reverses: Option<Uuid>,
    #[diesel(sql_type = Text)]
    outcome: String,
}

const COLUMNS: &str = "id, coalesce(product_id::text, '') AS product_id, coalesce(delta, 0)::bigint AS delta, reverses,
    coalesce(outcome::text, '') AS outcome";

impl From<Row> for Recorded {
    fn from(row: Row) -> Self {
        Self {
            id: UpdateId(row.id),
            product_id: row.product_id,
            delta: row.delta,
            reverses: row.reverses.map(UpdateId),
            outcome: row.outcome,
        }
    }
}

impl Snapshot {
    /// Opens it: what is recorded after this returns is not in it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn open(settings: &Settings, source: Uuid, seed: i64) -> Result<Self, Error> {
        Ok(Self {
            connection: open_long_read(settings).await?,
            source,
            seed,
        })
    }

    /// Digests of the entries below `until`, by the part of the ids that they are in, as
    /// `db::audit::Snapshot::sum_updates` has them of ours; with `only`, of those ids alone. Should the two servers
    /// hash differently, every part differs, and is compared row by row.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn digest(
        &mut self,
        bounds: &[Uuid],
        until: Uuid,
        only: Option<&[UpdateId]>,
    ) -> Result<Vec<Part>, Error> {
        let of_those = if only.is_some() {
            "AND id = ANY($5)"
        } else {
            "AND $5 IS NULL"
        };
        let rows: Vec<DigestRow> = diesel::sql_query(format!(
            "SELECT width_bucket(id, $2) AS part, count(*) FILTER (WHERE outcome = 'applied' OR delta < 0) AS rows,
                 count(*) FILTER (WHERE delta > 0 AND outcome IS DISTINCT FROM 'applied') AS in_vain,
                 coalesce(sum(hashtextextended(product_id::text COLLATE \"C\", uuid_hash_extended(id, uuid_hash_extended(
                     coalesce(reverses, '00000000-0000-0000-0000-000000000000'),
                     hashint8extended(delta::bigint, CASE WHEN outcome = 'applied' THEN $1 ELSE ~$1 END)
                 )))) FILTER (WHERE outcome = 'applied' OR delta < 0), 0)::text AS digest
             FROM stock_ledger
             WHERE source = $4 AND id < $3 {of_those}
             GROUP BY 1"
        ))
        .bind::<BigInt, _>(self.seed)
        .bind::<Array<SqlUuid>, _>(bounds)
        .bind::<SqlUuid, _>(until)
        .bind::<Text, _>(self.source.to_string())
        .bind::<Nullable<Array<SqlUuid>>, _>(
            only.map(|ids| ids.iter().map(|id| id.0).collect::<Vec<_>>()),
        )
        .load(&mut self.connection)
        .await?;
        rows.into_iter()
            .map(|row| {
                let sum = row.digest.parse().map_err(|_| {
                    Error::Refused(diesel::result::Error::DeserializationError(
                        format!("a digest of {}", row.digest).into(),
                    ))
                })?;
                let digest = Digest {
                    rows: row.rows.unsigned_abs(),
                    sum,
                };
                Ok(Part {
                    part: usize::try_from(row.part).unwrap_or(0),
                    digest,
                    in_vain: row.in_vain.unsigned_abs(),
                })
            })
            .collect()
    }

    /// Looks entries up by their ids.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn find(&mut self, ids: &[UpdateId]) -> Result<Vec<Recorded>, Error> {
        find_recorded(&mut self.connection, self.source, ids).await
    }

    /// Begins to read entries in the order of their ids; what was begun before ends.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn open_stream(&mut self, entries: Entries) -> Result<(), Error> {
        let bound = |sign: &str, id: Option<Uuid>| {
            id.map(|id| format!(" AND id {sign} '{id}'"))
                .unwrap_or_default()
        };
        let condition = match entries {
            Entries::Between(from, until) => bound(">=", from) + &bound("<", until),
            Entries::VainReturnsBelow(until) => {
                format!(" AND id < '{until}' AND delta > 0 AND outcome IS DISTINCT FROM 'applied'")
            }
        };
        // A cursor takes no parameters; these are ids of our own.
        self.connection
            .batch_execute(&format!(
                "CLOSE ALL; DECLARE entries_in_order NO SCROLL CURSOR FOR
                 SELECT {COLUMNS} FROM stock_ledger WHERE source = '{}'{condition} ORDER BY id",
                self.source
            ))
            .await?;
        Ok(())
    }

    /// The next `limit` of them; none after the last.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn next_page(&mut self, limit: usize) -> Result<Vec<Recorded>, Error> {
        let rows: Vec<Row> = diesel::sql_query(format!("FETCH {limit} FROM entries_in_order"))
            .load(&mut self.connection)
            .await?;
        Ok(rows.into_iter().map(Into::into).collect())
    }
}

/// Looks entries of a source up by their ids, as they are now.
///
/// # Errors
/// See [`Error`].
pub async fn find_recorded(
    connection: &mut AsyncPgConnection,
    source: Uuid,
    ids: &[UpdateId],
) -> Result<Vec<Recorded>, Error> {
    let rows: Vec<Row> = diesel::sql_query(format!(
        "SELECT {COLUMNS} FROM stock_ledger WHERE source = $1 AND id = ANY($2) ORDER BY id"
    ))
    .bind::<Text, _>(source.to_string())
    .bind::<Array<SqlUuid>, _>(ids.iter().map(|id| id.0).collect::<Vec<_>>())
    .load(connection)
    .await?;
    Ok(rows.into_iter().map(Into::into).collect())
}
