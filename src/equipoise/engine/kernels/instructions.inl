// All kernels for one instruction set; EQ_ISA and EQ_TABLE come from the file that includes this.
#include "kernels.h"
#include "parallel.h"
#include "vec.h"

#include <cstdlib>

#include "tiles.inl"
#include "apply.inl"
#include "weight_gradient.inl"
#include "layout.inl"
#include "affine.inl"
#include "normalise.inl"
#include "pool.inl"
#include "normalise_pool.inl"

const EqKernels* EQ_TABLE() {
  static const EqKernels table = {
      apply,       weight_gradient, to_maps,         from_maps, copy_maps,
      statistics,  affine,          affine_sums,     affine_backward, normalise, normalise_backward,
      max_pool,    max_pool_backward, average_pool,  average_pool_backward,
      normalise_pool, normalise_pool_backward,
  };
  return &table;
}
