//! Adds two arrays with mlxport and prints the sum.

use mlxport::{Array, Result};

fn main() -> Result<()> {
    let x = Array::from_slice(&[1.0f32, 2.0, 3.0], &[3])?;
    let y = (&x * 2.0 + &x)?;
    println!("{:?}", y.to_vec::<f32>()?);
    Ok(())
}
