//! Short random histories, which shrink when something does not hold.

use proptest::prelude::*;

use crate::history::histories;
use crate::world::play;

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn everyone_hears_one_end_and_the_pool_is_whole(history in histories(1..60)) {
        play(&history);
    }
}
