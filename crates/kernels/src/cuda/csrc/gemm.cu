#include "dev.h"
#include "gemm_skinny.h"

KERNEL(256, 2, smxx_bf16_product_few, ProductParams) { skinny<2, 1, false, true>(p); }
KERNEL(256, 2, smxx_bf16_product_few_tall, ProductParams) { skinny<2, 4, false, true>(p); }
KERNEL(256, 2, smxx_bf16_product, ProductParams) { skinny<4, 1, false, false>(p); }
KERNEL(256, 2, smxx_bf16_product_tall, ProductParams) { skinny<4, 4, false, false>(p); }
