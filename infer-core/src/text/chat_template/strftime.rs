//! `strftime` for the dates of chat templates, in UTC.

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// Formats a time (seconds since 1970, UTC) like C's `strftime`. Unknown conversions are copied unchanged.
pub fn strftime(unix_seconds: i64, format: &str) -> String {
    let (days, second) = (unix_seconds.div_euclid(86_400), unix_seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let month_name = MONTHS[month as usize - 1];
    let weekday = (days + 4).rem_euclid(7); // from Sunday
    let weekday_name = WEEKDAYS[weekday as usize];
    let day_of_year = days - days_until(year) + 1;
    let hour12 = (hour + 11) % 12 + 1;

    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        // `%-d` is `%d` without the leading zero.
        let mut letter = chars.next();
        let padded = letter != Some('-');
        if !padded {
            letter = chars.next();
        }
        let number = |value: i64| if padded { format!("{value:02}") } else { value.to_string() };
        match letter {
            Some('d') => out.push_str(&number(day)),
            Some('e') => out.push_str(&format!("{day:2}")),
            Some('m') => out.push_str(&number(month)),
            Some('y') => out.push_str(&number(year.rem_euclid(100))),
            Some('Y') => out.push_str(&year.to_string()),
            Some('b' | 'h') => out.push_str(&month_name[..3]),
            Some('B') => out.push_str(month_name),
            Some('a') => out.push_str(&weekday_name[..3]),
            Some('A') => out.push_str(weekday_name),
            Some('H') => out.push_str(&number(hour)),
            Some('I') => out.push_str(&number(hour12)),
            Some('M') => out.push_str(&number(minute)),
            Some('S') => out.push_str(&number(second)),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('F') => out.push_str(&format!("{year}-{month:02}-{day:02}")),
            Some('T' | 'X') => out.push_str(&format!("{hour:02}:{minute:02}:{second:02}")),
            Some('D' | 'x') => out.push_str(&format!("{month:02}/{day:02}/{:02}", year.rem_euclid(100))),
            Some('R') => out.push_str(&format!("{hour:02}:{minute:02}")),
            Some('c') => out.push_str(&strftime(unix_seconds, "%a %b %e %T %Y")),
            Some('k') => out.push_str(&format!("{hour:2}")),
            Some('l') => out.push_str(&format!("{hour12:2}")),
            Some('C') => out.push_str(&number(year.div_euclid(100))),
            Some('j') => out.push_str(&if padded { format!("{day_of_year:03}") } else { day_of_year.to_string() }),
            Some('u') => out.push_str(&((weekday + 6) % 7 + 1).to_string()),
            Some('w') => out.push_str(&weekday.to_string()),
            Some('U') => out.push_str(&number((day_of_year + 6 - weekday) / 7)),
            Some('W') => out.push_str(&number((day_of_year + 6 - (weekday + 6) % 7) / 7)),
            Some('V') => out.push_str(&number(iso_week(unix_seconds).1)),
            Some('G') => out.push_str(&iso_week(unix_seconds).0.to_string()),
            Some('s') => out.push_str(&unix_seconds.to_string()),
            Some('f') => out.push_str("000000"),
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            // The time has no zone, like Python's `datetime.now()`.
            Some('z' | 'Z') => {}
            Some('%') => out.push('%'),
            other => {
                out.push_str(if padded { "%" } else { "%-" });
                out.extend(other);
            }
        }
    }
    out
}

/// Year, month and day of a number of days since 1970-01-01, in the Gregorian calendar. Hinnant's algorithm: the year starts
/// in March, so the leap day is its last day.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// Days from 1970-01-01 to January 1 of `year`.
fn days_until(year: i64) -> i64 {
    let before = year - 1;
    365 * (year - 1970) + before.div_euclid(4) - before.div_euclid(100) + before.div_euclid(400) - 477
}

/// Year and number of a day's week by ISO 8601: the year of the week's Thursday.
fn iso_week(unix_seconds: i64) -> (i64, i64) {
    let days = unix_seconds.div_euclid(86_400);
    let thursday = days + 3 - (days + 3).rem_euclid(7);
    let (year, ..) = civil(thursday);
    (year, (thursday - days_until(year)) / 7 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_equal_gnu_date() {
        // Expected values are from GNU `date -u`.
        assert_eq!(strftime(0, "%F %T %a"), "1970-01-01 00:00:00 Thu");
        assert_eq!(strftime(951_782_399, "%F %T %A"), "2000-02-28 23:59:59 Monday");
        assert_eq!(strftime(951_782_400, "%d %b %y"), "29 Feb 00");
        assert_eq!(strftime(4_107_542_399, "%-d %B %Y %I %p"), "28 February 2100 11 PM");
        assert_eq!(strftime(-1, "%F %T"), "1969-12-31 23:59:59");
        assert_eq!(strftime(0, "100%% %-Q %Q %"), "100% %-Q %Q %");
    }
}
