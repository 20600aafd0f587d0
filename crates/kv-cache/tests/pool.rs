//! Random lives of tables against a plain count of what they must own.

use std::collections::HashSet;

use kv_cache::{BlockPool, BlockTable, PoolFull};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Open,
    /// Of the table at this index (modulo their number), room for so many tokens.
    Reserve(usize, usize),
    Drop(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => Just(Step::Open),
        5 => (any::<usize>(), 0usize..80).prop_map(|(table, len)| Step::Reserve(table, len)),
        2 => any::<usize>().prop_map(Step::Drop),
    ];
    prop::collection::vec(step, 0..60)
}

/// Every block has one owner, padding has none, and the counts say so.
fn check_whole(pool: &BlockPool, n_blocks: usize, tables: &[BlockTable]) {
    pool.check().unwrap();
    let owned: Vec<u32> = tables.iter().flat_map(BlockTable::ids).copied().collect();
    let distinct: HashSet<u32> = owned.iter().copied().collect();
    assert_eq!(distinct.len(), owned.len(), "a block with two owners: {owned:?}");
    assert!(owned.iter().all(|&id| id != 0 && (id as usize) < n_blocks));
    let stats = pool.stats();
    assert_eq!(stats.used, owned.len());
    assert_eq!(stats.free + stats.used + 1, n_blocks);
    assert_eq!(stats.free + stats.used, stats.total);
}

proptest! {
    #[test]
    fn random_lives_keep_the_pool_whole(n_blocks in 1usize..24, block_len in 1usize..9, steps in steps()) {
        let pool = BlockPool::new(n_blocks, block_len);
        let mut tables: Vec<BlockTable> = Vec::new();
        for step in steps {
            match step {
                Step::Open => tables.push(pool.open()),
                Step::Reserve(table, len) if !tables.is_empty() => {
                    let n = tables.len();
                    let table = &mut tables[table % n];
                    let (had, free) = (table.ids().to_vec(), pool.stats().free);
                    let wanted = len.div_ceil(block_len).saturating_sub(had.len());
                    match table.reserve(len) {
                        Ok(()) => prop_assert_eq!(table.ids().len(), had.len() + wanted),
                        Err(full) => {
                            prop_assert!(wanted > free);
                            prop_assert_eq!(full, PoolFull { wanted, free });
                            prop_assert_eq!(table.ids(), &had[..]);
                        }
                    }
                    prop_assert!(table.ids().starts_with(&had), "reserving moved a block");
                }
                Step::Drop(table) if !tables.is_empty() => {
                    let n = tables.len();
                    drop(tables.swap_remove(table % n));
                }
                _ => {}
            }
            check_whole(&pool, n_blocks, &tables);
        }
        drop(tables);
        check_whole(&pool, n_blocks, &[]);
    }

    #[test]
    fn slots_of_live_tables_never_meet(block_len in 1usize..9, lens in prop::collection::vec(0usize..40, 1..6)) {
        let pool = BlockPool::new(1 + lens.iter().map(|len| len.div_ceil(block_len)).sum::<usize>(), block_len);
        let mut seen = HashSet::new();
        let mut tables = Vec::new();
        for len in lens {
            let mut table = pool.open();
            table.reserve(len).unwrap();
            for position in 0..len {
                let slot = table.slot(position);
                prop_assert!(slot as usize >= block_len, "slot {slot} lies in the padding block");
                prop_assert!(seen.insert(slot), "slot {slot} twice");
            }
            tables.push(table);
        }
        prop_assert_eq!(pool.stats().free, 0);
    }
}

#[test]
#[should_panic(expected = "out of bounds")]
fn a_slot_beyond_the_reserved_room_is_a_bug() {
    let mut table = BlockPool::new(4, 4).open();
    table.reserve(4).unwrap();
    table.slot(4);
}

#[test]
#[should_panic(expected = "32 bits")]
fn slots_fit_in_32_bits() {
    BlockPool::new(1 << 20, 1 << 13);
}
