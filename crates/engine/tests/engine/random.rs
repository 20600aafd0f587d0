//! Short random histories, which shrink when something does not hold. `PROPTEST_CASES=30000` plays more.

use proptest::prelude::*;

use crate::history::histories;
use crate::world::play;

fn config() -> ProptestConfig {
    let config = ProptestConfig::default(); // takes the variable
    if std::env::var_os("PROPTEST_CASES").is_some() {
        config
    } else {
        ProptestConfig { cases: 1_000, ..config }
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn everyone_hears_one_end_and_the_pool_is_whole(history in histories(1..60)) {
        play(&history);
    }
}
