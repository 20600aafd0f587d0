// Where lanes hold the elements of mma.m16n8k16's operands: the formulas of csrc/dev.h (`mma_bf16`) against NVIDIA's CuTe.
// Built and run by fragments.sh.
#include <cstdio>
#include <cute/atom/mma_traits_sm80.hpp>
#include <cute/tensor.hpp>

struct Place {
    int row, column;
};

template <class Layout> int differences(const char *operand, int values, int rows, Place (*ours)(int, int, int)) {
    int wrong = 0;
    for (int lane = 0; lane < 32; lane++) {
        for (int value = 0; value < values; value++) {
            int theirs = Layout{}(lane, value); // column by column
            Place place = ours(lane / 4, 2 * (lane % 4), value);
            wrong += place.row != theirs % rows || place.column != theirs / rows;
        }
    }
    std::printf("%s: %d of %d elements differ\n", operand, wrong, 32 * values);
    return wrong;
}

int main() {
    using Traits = cute::MMA_Traits<cute::SM80_16x8x16_F32BF16BF16F32_TN>;
    // With g = lane / 4 and c = 2 (lane % 4). A [m, k], B [n, k], D [m, n].
    int wrong = differences<Traits::ALayout>("A", 8, 16, [](int g, int c, int v) {
        return Place{g + v / 2 % 2 * 8, c + v % 2 + v / 4 * 8};
    });
    wrong += differences<Traits::BLayout>("B", 4, 8, [](int g, int c, int v) { return Place{g, c + v % 2 + v / 2 * 8}; });
    wrong += differences<Traits::CLayout>("D", 4, 16, [](int g, int c, int v) { return Place{g + v / 2 * 8, c + v % 2}; });
    return wrong != 0;
}
