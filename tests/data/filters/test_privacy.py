"""Test masking: private data are masked in any context, nothing else is, in linear time."""

import random
import re
import time

import pytest

from scratch_gpt.data.filters.privacy import ALL_KINDS, DEFAULT_KINDS, MASKS, mask_private
from scratch_gpt.data.filters.quality import quality_problem
from scratch_gpt.utils.key_shapes import KEYS, SHAPE_PARTS, SHAPES, find_keys


PRIVATE = {
    "email": [
        "jo@example.com",
        "Jo.Doe+x@mail.example.co.uk",
        "a_b%c@x-y.museum",
        "m\u00fcller@firma.de",
        "jo@b\u00fccher.de",
    ],
    "ip": ["192.168.0.17", "8.8.4.255", "2001:db8::1", "fe80::1ff:fe23:4567:890a", "1:2:3:4:5:6:7:8"],
    "phone": [
        "+44 20 7946 0958",
        "+1-212-555-0123",
        "+1.212.555.0123",
        "+49 (0)30 1234567",
        "(212) 555-0123",
        "212-555-0123",
        "1-800-555-0199",
        "212.555.0123",
        "020 7946 0958",
        "(0151) 234 5678",
        "01 23 45 67 89",
        "06-12-34-56-78",
        "+49 30/1234567",
        "+44\u00a020\u00a07946\u00a00958",
        "212\u2011555\u20110123",
        "212-555-0123x45",
    ],
    "key": [
        "AKIA" + "IOSF" * 4,
        "ghp_" + "a1B2" * 9,
        "github_pat_" + "a1B2_" * 6,
        "hf_" + "aB3d" * 9,
        "sk-" + "a1B2" * 12,
        "sk-proj-" + "a_B-2" * 8,
        "xoxb-1234567890-abcdef",
        "AIza" + "a1B2c" * 7,
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcDEF123_-x",
        "-----BEGIN PRIVATE KEY-----\nMIIabc/+=\n-----END PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----MIIEvQIBADANBgkqhkiG9w0BAQEFAASC",
        "-----BEGIN RSA PRIVATE KEY-----\nDEK-Info: AES-128-CBC,AB\n\nMIIabc\n-----END RSA PRIVATE KEY-----",
    ],
    "card": [
        "4111111111111111",
        "4111 1111 1111 1111",
        "5555-5555-5555-4444",
        "378282246310005",
        "3782 822463 10005",
        "30569309025904",
        "6011111111111117",
        "4222222222222",
        "4111\u00a01111\u00a01111\u00a01111",
    ],
    "iban": [
        "DE89 3704 0044 0532 0130 00",
        "GB82WEST12345698765432",
        "BE68 5390 0754 7034",
        "NO93 8601 1117 947",
        "FR14-2004-1010-0505-0001-3M02-606",
    ],
    "ssn": ["123-45-6789", "078-05-1120"],
}


FORMS = ["{}", "Write to {}, please.", "({})", "<{}>", '"{}"', "\n{}\n", "\u8bf7\u8054\u7cfb {} \u8c22\u8c22"]
FORMS += ["\u8bf7\u8054\u7cfb{}\u8c22\u8c22", "\u5730\u5740:{}\u3002"]  # neighbors that are not ASCII


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind in PRIVATE for value in PRIVATE[kind]])
def test_private_data_is_masked_in_any_context(kind, value):
    for form in FORMS:
        kinds = DEFAULT_KINDS if kind in DEFAULT_KINDS else ALL_KINDS
        masked, counts = mask_private(form.format(value), kinds=kinds)
        assert masked == form.format(f"[{kind.upper()}]")
        assert counts == {**dict.fromkeys(kinds, 0), kind: 1}
        others = [other for other in DEFAULT_KINDS if other != kind]
        assert mask_private(form.format(value), kinds=others) == (form.format(value), dict.fromkeys(others, 0))


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ('api_key = "abcd1234efgh5678"', 'api_key = "[KEY]"'),
        ("OPENAI_API_KEY=zzzz9999yyyy8888", "OPENAI_API_KEY=[KEY]"),
        ("aws_secret_access_key: wJalrXUtnFEMI/K7MDENG/bPxRfiCYKEY", "aws_secret_access_key: [KEY]"),
        ("token=" + "a1" * 500 + " next", "token=[KEY] next"),
        ("Tel: 5550123, fax no. 030 1234567", "Tel: [PHONE], fax no. [PHONE]"),
        ("http://10.0.0.12:8080/ and [2001:db8::7]:443", "http://[IP]:8080/ and [[IP]]:443"),
        ("a@b.org, c@d.org", "[EMAIL], [EMAIL]"),
        ("jo@example.com-- Jo, jo@example.com-", "[EMAIL]-- Jo, [EMAIL]-"),
        ("+44 20 7946 0958, 1234567 sold", "[PHONE], 1234567 sold"),
        ("Tel.: 030/1234567, Mobile: 0176/12345678", "Tel.: [PHONE], Mobile: [PHONE]"),
        ("api\u00a0key, token=\u00a0" + "a1" * 20, "api\u00a0key, token=\u00a0[KEY]"),
        ("appeler de 01 23 45 67 89 de 9h", "appeler de [PHONE] de 9h"),
        ("Reply from 2001:db8::17: time=1ms", "Reply from [IP]: time=1ms"),
        ("addr:2001:db8::17, inet6:2001:db8::", "addr:[IP], inet6:[IP]"),
        ("IP\u306ffe80::1ff:fe23:4567:890a\u3067\u3059", "IP\u306f[IP]\u3067\u3059"),
        ("https://user:pass@host/x, http://a:b@localhost:80", "https://[KEY]@host/x, http://[KEY]@localhost:80"),
        ("postgres://u:p@ss@db.example.com:5432/n", "postgres://[KEY]@db.example.com:5432/n"),
        ("redis://:s3cret@10.0.0.1", "redis://[KEY]@[IP]"),
        ("-----BEGIN PRIVATE KEY-----\nMIIabc/+\nabc=\n\nEnd.", "[KEY]\n\nEnd."),
        ("-----BEGIN RSA PRIVATE KEY-----\r\nProc-Type: 4,ENCRYPTED\r\n\r\nMIIEabcdef", "[KEY]"),
        ('{"k": "-----BEGIN EC PRIVATE KEY-----\\nMIIEabc\\nabcd\\n"}', '{"k": "[KEY]\\n"}'),
        ("-----BEGIN PRIVATE KEY----- " + "MIIE" * 16 + " is cut off", "[KEY] is cut off"),
        ("secret_key = my-super-secret-key-2024", "secret_key = [KEY]"),
        ('token: "my-secret-token-12345"', 'token: "[KEY]"'),
        ("TOKEN=SG.ab12cd34ef56gh78.ij90kl12mn34, auth_token=deadbeefcafe12345678", "TOKEN=[KEY], auth_token=[KEY]"),
        ("client_secret = 8f14e45fceea167a5a36dedd4bea2543", "client_secret = [KEY]"),
        ("api_key=1234567890123456", "api_key=[KEY]"),
        ("jo@163.com, me@1und1.de, a@beta.io", "[EMAIL], [EMAIL], [EMAIL]"),
    ],
)
def test_text_around_private_data_stays(text, masked):
    assert mask_private(text)[0] == masked
    assert mask_private(masked) == (masked, dict.fromkeys(DEFAULT_KINDS, 0))  # masking again changes nothing


@pytest.mark.parametrize(
    "text",
    [
        "On 2024-01-05, 05.01.2024, 01/05/2024 and 5-1-24, from 1999-2003, at 12:30:45.",
        "ISBN 978-0-306-40615-7, ISBN 0-306-40615-2, ISBN 9780306406157, ISSN 1234-5678, doi:10.1000/182.",
        "Section 3.2.1.4, v1.2.3.4, version 12.0.1.10, 1.2.3, 1.2.3.4 and 10.20.30.40.50, Chrome/120.0.0.0.",
        "Colours #ff8800 and #1e90ff; $1,234,567.89, EUR 1.234.567,89, 1 000 000 000 people, 3.14159265, +1.23456789.",
        "Pages 123-456, vol. 12(3), (1999) 123-130, Isaiah 40:31, a score of 21-19, the years 1914-18.",
        "std::vector, a::b, x :: Int, ::1, 00:1A:2B:3C:4D:5E, {a: 1, b: 2}, card 4111-1111-1111-1111.",
        "git@github.com:user/repository.git, @property, user@localhost, a @ b, foo@1.2.3, sk-learn-with-a-long-name.",
        "api_key = os.environ['API_KEY'], token: see_the_documentation, secret = getpass(), api_key=YOUR_KEY_HERE.",
        "The phone rang 3 times in 1999, and the token 42 was lost; -----BEGIN PRIVATE KEY----- is how a key begins.",
        "00 01 02 03 04 05 06 07 08 09 0a 0b, de ad 01 02 03 04 05, 02 04 06 08 10 12, rev 01.02.03.04.05.",
        "+2024-01-05 Release\n+05.01.2024 Ausgabe\n+31/12/2024, by fax 12/05/2024, the h\u00f4tel 1234567.",
        "token=compute_token_value(user1), token: 'tokenizer_config.json',v2.",
        "1:2:3:4:5:6:7:8:9, std::a1::b2, 12:30:45: done.",
        "image@2x.png, icon@3x.webp, sprite@1.5x.svg, Icon-60@2x~ipad.png, logo@4k.JPG, lodash@latest.tgz",
        "left-pad@1.3.0.tar.gz, foo@1.x.beta, vue@next.js, notes@v2.md, module@v1.2.rs, lib@main.so, getty@tty1.timer",
        "W@x.mean(0), q@k.transpose(-2, -1), @app.route('/x'), @pytest.mark.skip, a@b.T, actions/checkout@v4.yaml",
        "token = tokenizer.encode2(text), api_key=config.get_key1(), token = self.tokenizer.decode_one1(ids)",
        "secret_key = settings.SECRET_KEY_V2, token = next_token_ids2[0, -1], token == expected_token_value1",
        "api_key = os.environ2['OPENAI_API_KEY'], token = hashlib.sha256_file(name), auth_key = base64.b64decode(x)",
        "'token': 'models/v2/tokenizer.json', private_key = /etc/ssl/server1.key, 'pad_token': 'special_token_17'",
        "https://example.com:8080/a@b, https://medium.com/@user/x:y@z, http://[::1]:80/, git@github.com:a/b.git",
        "https://${USER}:${PASS}@host, https://{user}:{password}@host, mailto: a, https://pypi.org/p@1:2@3",
        "token = 20240101123456789, -----BEGIN PUBLIC KEY-----\nMIIabc\n-----END PUBLIC KEY-----",
    ],
)
def test_ordinary_prose_stays(text):
    assert mask_private(text) == (text, dict.fromkeys(DEFAULT_KINDS, 0))
    kinds = [kind for kind in ALL_KINDS if kind != "card" or "4111" not in text]
    assert mask_private(text, kinds=kinds) == (text, dict.fromkeys(kinds, 0))


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112, 1234567890123456, 9780306406157, 1700000000000, 4111.1111.1111.1111, x4111111111111111",
        "4111 1111 1111 1111 1111 1111, 12 4111 1111 1111 1111, 0x4111111111111111, 4111111111111111.5",
        "DE88 3704 0044 0532 0130 00, DE89 3704 0044, XX89 3704 0044 0532 0130 00, ISO 9001 2015 4711",
        "000-12-3456, 666-12-3456, 900-12-3456, 123-00-4567, 123-45-0000, 123 45 6789, 123456789, 2123-45-6789",
        "00000010: 4111 1111 1111 1111 de89 3704, $123,456,789.00, 12:34:56, 2024-05-17, v123-45-6789",
    ],
)
def test_numbers_that_are_not_account_numbers_stay(text):
    assert mask_private(text, kinds=["card", "iban", "ssn"])[0] == text


def test_an_unseparated_social_security_number_needs_a_keyword_before_it():
    text = "SSN 123 45 6789, social security number: 123456789."
    assert mask_private(text, kinds=["ssn"]) == ("SSN [SSN], social security number: [SSN].", {"ssn": 2})


def test_novels_contain_no_private_data(data):
    for file in sorted((data / "books").glob("*.txt"))[:8]:
        text = file.read_text(encoding="utf-8")
        assert mask_private(text, kinds=ALL_KINDS) == (text, dict.fromkeys(ALL_KINDS, 0)), file.name


def test_hints_skip_no_match(monkeypatch):
    values = [value for of_kind in PRIVATE.values() for value in of_kind]
    values += [
        "+1.12.34",
        "a1:b::2",
        "1:2::",
        "::1:2",
        "0.0.10.1",
        "MT84MALT011000012345MTLCAST001S",
        "x=>'" + "a1" * 8,
    ]
    draws = random.Random(0)
    alphabet = [*"0123456789aAfF:.=/+-()@ \n\u00a0\u2011\"'", *values, "key", "token", "tel ", "SSN ", "hf_", "xoxb-"]
    texts = ["".join(draws.choices(alphabet, k=draws.randrange(1, 12))) for _ in range(3000)]
    masked = [mask_private(text, kinds=ALL_KINDS) for text in texts]
    always = {kind: [mask._replace(hint=lambda text: True) for mask in masks] for kind, masks in MASKS.items()}
    monkeypatch.setattr("scratch_gpt.data.filters.privacy.MASKS", always)
    assert [mask_private(text, kinds=ALL_KINDS) for text in texts] == masked
    assert sum(sum(counts.values()) for _, counts in masked) > 1000


def test_each_key_contains_one_of_the_parts_that_hint_at_it():
    a, b = "a1B2" * 12, "-a_B1" * 8
    keys = [
        f"hf_{a}",
        f"sk-{a}",
        *(f"gh{kind}_{a}" for kind in "pousr"),
        f"github_pat_{a}",
        f"glpat-{a}",
        "ASIA" + "A1B2" * 4,
    ]
    keys += [
        "AKIA" + "A1B2" * 4,
        f"AIza{a}"[:39],
        f"xoxp-{a}",
        f"rk_live_{a}",
        f"sk_test_{a}",
        f"npm_{a}",
        f"pypi-{a}",
    ]
    keys += [f"SG.{a}", f"ya29.{a}", f"gsk_{a}", f"dckr_pat_{a}", f"Bearer {a}", f"bearer {b}", f"eyJ{a}.eyJ{a}.{a}"]
    found = set()
    for key in keys:
        found |= {kind for kind, shape in SHAPES.items() if re.match(shape, key)}
        assert mask_private(key)[0] == "[KEY]" and any(part in key for part in SHAPE_PARTS)
    assert found == SHAPES.keys()


def test_names_are_masked_if_a_finder_is_given():
    text = "Ada Lovelace wrote to Charles."
    masked, counts = mask_private(text, find_names=lambda text: [(22, 29), (0, 12), (4, 12)])
    assert masked == "[NAME] wrote to [NAME]." and counts["name"] == 2
    assert "name" not in mask_private(text)[1]


def test_an_unknown_kind_is_an_error():
    with pytest.raises(ValueError, match="Unknown kinds: name. Choose from key, email, ip, phone, card, iban, ssn"):
        mask_private("x", kinds=["name", "email"])


HOSTILE = ["a", "@", "a@", "a@a.", "1", "1.", "01 ", "+1", "(0", ":", "-", ".", " ", "sk-", "eyJa.", "token:", "tel "]
HOSTILE += [
    "-eyJa1",
    "eyJaaaaaaaaa.",
    "sk-1",
    "api_key=",
    "api_key=a1",
    "-----BEGIN PRIVATE KEY-----",
    "-----BEGIN PRIVATE KEY-----a-",
    "10.20.30.40",
    "01 23 45 67 89 ",
    "+49 1/",
    "2001:",
    "::a",
    "a@b-",
    "\u00fc",
    "://a:",
    "://a:b@",
    "-----BEGIN PRIVATE KEY-----\n",
    "-----BEGIN PRIVATE KEY-----\nA: b\n",
    "-----BEGIN PRIVATE KEY-----\nMIIabc\n",
    "\n",
    "4111 ",
    "DE89 3704 ",
    "AB12",
    "123-45-",
    "token = a1b2c3d4e5f6g7h8(",
    "a@2x.",
]


@pytest.mark.parametrize("begin", ["-----BEGIN PRIVATE KEY-----", "token=", "https://a:", "DE89", "a@", "4111"])
@pytest.mark.parametrize("filling", ["a1", " ", "\n", "-", "/", ":", ".", "@", "\\n"])
def test_a_line_of_megabytes_takes_linear_time(begin, filling):
    text = begin + filling * (2_000_000 // len(filling))
    start = time.process_time()
    mask_private(text, kinds=ALL_KINDS)
    assert time.process_time() - start < 8  # 0.3 to 1 s


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_lines_take_linear_time(piece):
    text = piece * (400_000 // len(piece))
    start = time.process_time()
    mask_private(text, kinds=ALL_KINDS)
    assert len({what for _, what in find_keys(text)}) < len(KEYS)
    quality_problem(text)
    assert time.process_time() - start < 4  # a quadratic pattern would take minutes; these take 0.1 to 0.3 s
