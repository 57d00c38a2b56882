//! The comparison that other tests rely on finds planted faults.

use crate::support::{EXACT, REDUCTION, ROUNDING, difference};

#[test]
fn faults_are_found_and_roundings_are_not() {
    let eps = f64::from(f32::EPSILON);
    let expected = [1.0, -2.0, 1e-9, f64::INFINITY, f64::NAN];
    let mut found = expected;
    assert_eq!(difference(&found, &expected, eps, EXACT), None);
    found[0] += 3.0 * eps;
    assert_eq!(difference(&found, &expected, eps, ROUNDING), None);
    assert!(difference(&found, &expected, eps, EXACT).is_some());
    found[0] += 10.0 * eps;
    assert!(difference(&found, &expected, eps, ROUNDING).is_some());
    for (at, wrong) in [(0, f64::NAN), (1, 2.0), (3, f64::MAX), (3, f64::NEG_INFINITY), (4, 0.0)] {
        let mut found = expected;
        found[at] = wrong;
        assert!(difference(&found, &expected, eps, REDUCTION).is_some(), "element {at} as {wrong}");
    }
    assert!(difference(&expected[..4], &expected, eps, REDUCTION).is_some());
}
