// Empty in place of MLX's: that one names internals of Metal's compiler, and metal_math.h has what it adds.
