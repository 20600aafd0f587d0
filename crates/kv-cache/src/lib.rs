//! The paged KV cache as a card game: which block belongs to which sequence, and nothing else.
//!
//! Ids and counts only. No tensor lives here, no request, no clock; the rows that the ids stand
//! for belong to the model. A block is owned by exactly one [`BlockTable`] and returns to the pool
//! when the table is dropped, which is the only way to free one.
//!
//! ```
//! let pool = kv_cache::BlockPool::new(5, 16); // block 0 is padding, so four can be lent
//! let mut table = pool.open();
//! table.reserve(33).unwrap(); // tokens
//! assert_eq!(table.ids(), [1, 2, 3]);
//! assert_eq!(table.slot(17), 2 * 16 + 1);
//! drop(table);
//! assert_eq!(pool.stats().used, 0);
//! ```
mod pool;
mod table;

pub use pool::{BlockId, BlockPool, PoolFault, PoolFull, PoolStats};
pub use table::BlockTable;
