// W8A16: e4m3 weights widened in registers, exactly; each 128 columns are summed alone and scaled in f32.
#include "dev.h"
#include "gemm_skinny.h"

KERNEL(256, 2, smxx_fp8_product_few, ProductParams) { skinny<2, 1, true, true>(p); }
KERNEL(256, 2, smxx_fp8_product_few_tall, ProductParams) { skinny<2, 4, true, true>(p); }
KERNEL(256, 2, smxx_fp8_product, ProductParams) { skinny<4, 1, true, false>(p); }
KERNEL(256, 1, smxx_fp8_product_tall, ProductParams) { skinny<4, 4, true, false>(p); }
