#!/usr/bin/python3
"""Fills a newly provisioned Active Directory domain, without a server: seed.py FOLDER GROUPS. samba.go tells what is in it."""
import sys

import ldb
from samba import dsdb
from samba.auth import system_session
from samba.param import LoadParm
from samba.samdb import SamDB

folder = sys.argv[1]
lp = LoadParm()
lp.load(folder + "/etc/smb.conf")
db = SamDB(url=folder + "/private/sam.ldb", session_info=system_session(), lp=lp)
base = db.domain_dn()
PASSWORD = "Str0ng-Passw0rd"


def message(dn, flag, **values):
    return ldb.Message.from_dict(db, dict(dn=dn, **values), flag)


def replace(dn, controls=None, **values):
    db.modify(message(dn, ldb.FLAG_MOD_REPLACE, **values), controls=controls)


def user(name, **more):
    db.newuser(name, PASSWORD, userou="OU=People", useusernameascn=True, givenname=name.capitalize(), surname="Test",
               mailaddress=name + "@example.test", **more)
    return "CN=%s,OU=People,%s" % (name, base)


def group(name, members=()):
    dn = "CN=%s,OU=Groups,%s" % (name, base)
    entry = dict(dn=dn, objectClass="group", sAMAccountName=name)
    if members:
        entry["member"] = list(members)
    db.add(entry)
    return dn


db.transaction_start()
for ou in ("People", "Groups", "Elsewhere"):
    db.create_ou("OU=%s,%s" % (ou, base))

alice, bob, many = user("alice"), user("bob"), user("many")
for i in range(30):
    user("u%02d" % i)
replace(user("disabled"), userAccountControl="514")
user("mustchange", force_password_change_at_next_login_req=True)
replace(user("expired"), accountExpires=str(116444736000000000 + 86400 * 10**7))
user("locked")
replace(user("hours"), logonHours=b"\0" * 21)
replace(user("wks"), userWorkstations="NOSUCHPC")
pwexpired = user("pwexpired")
user("svc-ldap")
http = user("svc-http")
replace(http, **{"servicePrincipalName": "HTTP/auth.example.test", "msDS-SupportedEncryptionTypes": "24"})

leaf = group("g3-leaf", [alice])
mid = group("g2-mid", [leaf])
top = group("g1-top", [mid])
cycle = group("g0-cycle", [top])
db.modify(message(leaf, ldb.FLAG_MOD_ADD, member=[cycle]))
group("odd (name)", [bob])
for i in range(int(sys.argv[2])):
    group("m%04d" % i, [many])
db.transaction_commit()

# Lock an account for half an hour after three failures within half an hour; a password may be changed at any age.
half = str(-30 * 60 * 10**7)
replace(base, lockoutThreshold="3", lockoutDuration=half, lockOutObservationWindow=half, minPwdAge="0")
# AD takes no time for pwdLastSet but 0 and -1, so this goes past the module that says so.
replace(pwexpired, controls=["local_oid:%s:0" % dsdb.DSDB_CONTROL_BYPASS_PASSWORD_HASH_OID], pwdLastSet="132000000000000000")
