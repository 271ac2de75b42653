//! "Did you mean …?"

/// The candidate that is nearest to what was written, if it is near enough to be a slip.
pub(crate) fn suggest<'c>(written: &str, candidates: &[&'c str]) -> Option<&'c str> {
    // Longer texts are no slips of ours, and the comparison is quadratic.
    const MAX_LEN: usize = 64;
    if written.len() > MAX_LEN {
        return None;
    }
    let fold = |text: &str| {
        text.chars()
            .filter(|c| *c != '_' && *c != '-')
            .flat_map(char::to_lowercase)
            .collect::<Vec<_>>()
    };
    let written = fold(written);
    let limit = match written.len() {
        0..=2 => 0,
        3..=5 => 1,
        6..=9 => 2,
        _ => 3,
    };
    candidates
        .iter()
        .map(|candidate| (distance(&written, &fold(candidate)), *candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Edits (insert, delete, replace, swap of neighbours) that lead from `a` to `b`.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let mut best = (above[j] + usize::from(x != y)).min(above[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && a[i - 1] == *y && *x == b[j - 1] {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips() {
        let fields = ["timeout", "retries", "route", "match", "redirect", "mirrorPercentage"];
        assert_eq!(suggest("timout", &fields), Some("timeout"));
        assert_eq!(suggest("retry", &fields), None);
        assert_eq!(suggest("mathc", &fields), Some("match"));
        assert_eq!(suggest("routes", &fields), Some("route"));
        assert_eq!(suggest("mirror_percentage", &fields), Some("mirrorPercentage"));
        assert_eq!(suggest("x", &fields), None);
        assert_eq!(suggest(&"x".repeat(1000), &fields), None);
    }
}
