//! `+ - * / % & | ^ << >>`, unary `-` and `!`, on arrays, results of operations and numbers.
//!
//! All are the functions of [`crate::ops`], so `&a + &b` and `ops::add(&a, &b)` are one path. They
//! return `Result<Array>`, and take one on the side where Rust's coherence rules let them:
//! `((&x * 0.5) + &y)?`.

use std::ops::{Add, BitAnd, BitOr, BitXor, Div, Mul, Neg, Not, Rem, Shl, Shr, Sub};

use super::{Array, Operand};
use crate::error::Result;
use crate::ops;

macro_rules! binary {
    ($($trait:ident::$method:ident => $op:path;)*) => { $(
        impl<T: Operand> $trait<T> for &Array {
            type Output = Result<Array>;
            fn $method(self, other: T) -> Result<Array> {
                $op(self, other)
            }
        }
        impl<T: Operand> $trait<T> for Array {
            type Output = Result<Array>;
            fn $method(self, other: T) -> Result<Array> {
                $op(self, other)
            }
        }
        impl $trait<&Array> for Result<Array> {
            type Output = Result<Array>;
            fn $method(self, other: &Array) -> Result<Array> {
                $op(self, other)
            }
        }
        impl $trait<Array> for Result<Array> {
            type Output = Result<Array>;
            fn $method(self, other: Array) -> Result<Array> {
                $op(self, other)
            }
        }
        // One float type only: with two, the compiler could not tell which a literal is.
        binary!(@scalar $trait $method $op: f64 i32);
    )* };
    (@scalar $trait:ident $method:ident $op:path: $($t:ty)*) => { $(
        impl $trait<&Array> for $t {
            type Output = Result<Array>;
            fn $method(self, other: &Array) -> Result<Array> {
                $op(self, other)
            }
        }
        impl $trait<Array> for $t {
            type Output = Result<Array>;
            fn $method(self, other: Array) -> Result<Array> {
                $op(self, other)
            }
        }
    )* };
}

binary! {
    Add::add => ops::add;
    Sub::sub => ops::subtract;
    Mul::mul => ops::multiply;
    Div::div => ops::divide;
    Rem::rem => ops::remainder;
    BitAnd::bitand => ops::bitwise_and;
    BitOr::bitor => ops::bitwise_or;
    BitXor::bitxor => ops::bitwise_xor;
    Shl::shl => ops::left_shift;
    Shr::shr => ops::right_shift;
}

macro_rules! unary {
    ($($trait:ident::$method:ident => $op:path;)*) => { $(
        impl $trait for &Array {
            type Output = Result<Array>;
            fn $method(self) -> Result<Array> {
                $op(self)
            }
        }
        impl $trait for Array {
            type Output = Result<Array>;
            fn $method(self) -> Result<Array> {
                $op(&self)
            }
        }
    )* };
}

unary! {
    Neg::neg => ops::negative;
    Not::not => ops::logical_not;
}
