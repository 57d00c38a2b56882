//! Weights from recipes: functions of their names, as in `tests/oracle/zoo.py`.

use std::fs;
use std::path::Path;

use half::{bf16, f16};
use serde_json::{Map, Value, json};

/// Writes a checkpoint with the tensors of these lines.
pub fn write(dir: &Path, config: &str, tensors: &[String], seed: u64) {
    fs::write(dir.join("config.json"), config).unwrap();
    let (mut header, mut data) = (Map::new(), Vec::new());
    for line in tensors {
        let (key, dtype, shape, bytes) = drawn(line, seed);
        let start = data.len();
        data.extend(bytes);
        header.insert(key, json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, data.len()] }));
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.into_bytes());
    file.extend(data);
    fs::write(dir.join("model.safetensors"), file).unwrap();
}

/// Name, dtype, shape and bytes of the tensor that a line of a recipe stands for.
fn drawn(line: &str, seed: u64) -> (String, String, Vec<usize>, Vec<u8>) {
    let fields: Vec<&str> = line.rsplitn(5, ' ').collect();
    let [high, low, shape, dtype, key] = fields[..] else { panic!("{line}") };
    let shape: Vec<usize> = match shape {
        "-" => Vec::new(),
        sizes => sizes.split('x').map(|size| size.parse().unwrap()).collect(),
    };
    let mut state = 0xCBF2_9CE4_8422_2325u64;
    for byte in key.bytes() {
        state = (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3);
    }
    state = state.wrapping_add(seed.wrapping_mul(0xD134_2543_DE82_EF95));
    let mut bytes = Vec::new();
    for i in 1..=shape.iter().product::<usize>() as u64 {
        let mut z = state.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let hash = z ^ (z >> 31);
        let integer = || {
            let (low, high): (i64, i64) = (low.parse().unwrap(), high.parse().unwrap());
            low + ((hash >> 32) % (high - low + 1) as u64) as i64
        };
        let float = || {
            if low == "sign" {
                return if hash >> 63 == 1 { 1.0 } else { -1.0 };
            }
            let (mean, spread): (f64, f64) = (low.parse().unwrap(), high.parse().unwrap());
            let unit = (hash >> 11) as f64 * 2f64.powi(-53);
            (mean + spread * 3f64.sqrt() * (2.0 * unit - 1.0)) as f32
        };
        match dtype {
            "F32" => bytes.extend(float().to_le_bytes()),
            "F16" => bytes.extend(f16::from_f32(float()).to_le_bytes()),
            "BF16" => bytes.extend(bf16::from_f32(float()).to_le_bytes()),
            "F8_E4M3" if low == "sign" => {
                let magnitude = (hash >> 32) % (high.parse::<u64>().unwrap() + 1);
                bytes.push((hash >> 24) as u8 & 128 | magnitude as u8);
            }
            "U8" | "I8" | "F8_E4M3" | "F8_E8M0" => bytes.push(integer() as u8),
            "U32" => bytes.extend((integer() as u32).to_le_bytes()),
            "I32" => bytes.extend((integer() as i32).to_le_bytes()),
            "I64" => bytes.extend(integer().to_le_bytes()),
            other => panic!("{other}"),
        }
    }
    (key.to_owned(), dtype.to_owned(), shape, bytes)
}
