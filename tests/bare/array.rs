//! Element types.

use half::{bf16, f16};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    Uint8,
    Uint32,
    Float16,
    Float32,
    Bfloat16,
}

impl Dtype {
    pub fn size(self) -> usize {
        match self {
            Self::Uint8 => 1,
            Self::Float16 | Self::Bfloat16 => 2,
            Self::Uint32 | Self::Float32 => 4,
        }
    }
}

pub trait Element: bytemuck::Pod {
    const DTYPE: Dtype;
}

macro_rules! elements {
    ($($t:ty => $dtype:ident),*) => { $(
        impl Element for $t {
            const DTYPE: Dtype = Dtype::$dtype;
        }
    )* };
}

elements!(u8 => Uint8, u32 => Uint32, f16 => Float16, f32 => Float32, bf16 => Bfloat16);
