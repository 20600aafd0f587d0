//! The paged KV cache as a card game: which block belongs to which sequence, and nothing else.
//!
//! Ids and counts only. No tensor lives here, no request, no clock; the rows that the ids stand
//! for belong to the model. A block is held by the [`BlockTable`]s that list it, and dropping them
//! is the only way to let go of it. A full block can be published under a [`Chain`]'s name: then
//! others find it, and it stays after its last holder until its place is needed.
//!
//! ```
//! use kv_cache::{BlockPool, Chain, Units};
//!
//! let pool = BlockPool::new(5, 4, true); // block 0 is padding, so four can be lent
//! let tokens: Vec<u32> = (0..10).collect();
//! let mut chain = Chain::new(b"model", b"tenant", 4, Units::none());
//! chain.extend(&tokens);
//!
//! let mut table = pool.open(&chain, &tokens, 9); // nothing is cached yet
//! table.reserve(10).unwrap();
//! assert_eq!((table.ids(), table.slot(5)), (&[1, 2, 3][..], 2 * 4 + 1));
//! table.publish(&mut chain, &tokens); // all ten are computed: two blocks are full
//! drop(table);
//! assert_eq!((pool.stats().used, pool.stats().cached), (0, 2));
//!
//! let again = pool.open(&chain, &tokens, 9);
//! assert_eq!((again.ids(), again.len_cached()), (&[1, 2][..], 8));
//! ```
mod chain;
mod ledger;
mod pool;
mod table;

pub use chain::{BlockName, Chain, Units};
pub use ledger::{BlockId, PoolFault, PoolFull, PoolStats};
pub use pool::BlockPool;
pub use table::BlockTable;
