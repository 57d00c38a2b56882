//! Groups of one process, and of two that talk over TCP on this machine.

use std::net::TcpListener;
use std::process::{Command, Stdio};

use mlxport::distributed::{Backend, Group};
use mlxport::{Dtype, ops};

use support::{f32_array, to_f64};

const RANK: &str = "MLX_RANK";

#[test]
fn a_process_alone_is_a_group_of_one() {
    if std::env::var_os(RANK).is_some() {
        return; // a member of the group below
    }
    let group = Group::join(Backend::Any, false).unwrap();
    assert_eq!((group.rank(), group.size()), (0, 1));
    let x = f32_array(&[1.0, -2.0], &[2]);
    for same in [Group::all_sum, Group::all_max, Group::all_min, Group::all_gather, Group::sum_scatter] {
        assert_eq!(to_f64(&same(&group, &x).unwrap()), [1.0, -2.0]);
    }
    assert!(group.send(&x, 0).is_err());
    assert!(group.recv(&[2], Dtype::Float32, 0).is_err());
    assert!(group.recv_like(&x, 0).is_err());
    assert!(group.recv(&[-1], Dtype::Float32, 0).is_err());
    assert!(group.split(0, 0).is_err());
    assert!(Group::join(Backend::Ring, true).is_err(), "nothing says who the others are");
    if !Backend::Nccl.is_available() {
        assert!(Group::join(Backend::Nccl, true).is_err());
    }
}

#[test]
fn two_processes_share_what_they_have() {
    if !Backend::Ring.is_available() {
        return;
    }
    if std::env::var_os(RANK).is_some() {
        return member();
    }
    // Ports that were free a moment ago.
    let listeners = [0; 2].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    let hosts = listeners.each_ref().map(|l| [l.local_addr().unwrap().to_string()]);
    drop(listeners);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("hosts.json");
    std::fs::write(&file, serde_json::to_string(&hosts).unwrap()).unwrap();
    let start = |rank: usize| {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "distributed::two_processes_share_what_they_have", "--nocapture"])
            .env(RANK, rank.to_string())
            .env("MLX_HOSTFILE", &file)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    for process in [0, 1].map(start) {
        let output = process.wait_with_output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&text));
    }
}

fn member() {
    let group = Group::join(Backend::Ring, true).unwrap();
    assert_eq!(group.size(), 2);
    let rank = group.rank();
    assert_eq!(rank.to_string(), std::env::var(RANK).unwrap());
    let mine = f64::from(rank);
    let x = f32_array(&[1.0 + mine, 10.0 - mine], &[2]);
    assert_eq!(to_f64(&group.all_sum(&x).unwrap()), [3.0, 19.0]);
    assert_eq!(to_f64(&group.all_max(&x).unwrap()), [2.0, 10.0]);
    assert_eq!(to_f64(&group.all_min(&x).unwrap()), [1.0, 9.0]);
    assert_eq!(to_f64(&group.all_gather(&x).unwrap()), [1.0, 10.0, 2.0, 9.0]);
    // Within a graph that goes on.
    let y = ops::add(group.all_sum(&ops::multiply(&x, 2.0).unwrap()).unwrap(), 1.0).unwrap();
    assert_eq!(to_f64(&y), [7.0, 39.0]);
    let other = 1 - rank;
    assert!(group.send(&x, 2).is_err() && group.recv_like(&x, -1).is_err());
    if rank == 0 {
        group.send(&x, other).unwrap().eval().unwrap();
        assert_eq!(to_f64(&group.recv(&[2], Dtype::Float32, other).unwrap()), [2.0, 9.0]);
    } else {
        assert_eq!(to_f64(&group.recv_like(&x, other).unwrap()), [1.0, 10.0]);
        group.send(&x, other).unwrap().eval().unwrap();
    }
}
