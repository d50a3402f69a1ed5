/* ownership.c - see ownership.h. */
#include "coordinator/ownership.h"

#include <stdlib.h>
#include <string.h>

/* --- groups ----------------------------------------------------------------------------------- */

static mr_group_place *find_group(mr_group_place *groups, uint32_t count, const char *name) {
    for (uint32_t i = 0; i < count; i++)
        if (strcmp(groups[i].name, name) == 0) return &groups[i];
    return NULL;
}

/* Whether every stage of the group is served by a ready member, all of one digest. */
static bool is_complete(const mr_view *view, const mr_stage_record *first) {
    bool there[MR_MAX_STAGES] = {false};
    uint32_t found = 0;
    for (uint32_t m = 0; m < view->member_count; m++) {
        const mr_member *member = view->members[m];
        if (member->role != MR_ROLE_WORKER || member->state == MR_MEMBER_LOADING) continue;
        for (uint32_t s = 0; s < member->stage_count; s++) {
            const mr_stage_record *stage = &member->stages[s];
            if (strcmp(stage->group, first->group) != 0 || stage->stages != first->stages ||
                stage->stage >= MR_MAX_STAGES || there[stage->stage] ||
                memcmp(&stage->digest, &first->digest, sizeof(first->digest)) != 0)
                continue;
            there[stage->stage] = true;
            found++;
        }
    }
    return found == first->stages;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const mr_group_place *)a)->name, ((const mr_group_place *)b)->name);
}

static uint32_t find_groups(mr_group_place *out, const mr_view *view) {
    uint32_t count = 0;
    for (uint32_t m = 0; m < view->member_count; m++) {
        const mr_member *member = view->members[m];
        if (member->role != MR_ROLE_WORKER || member->state != MR_MEMBER_READY) continue;
        for (uint32_t s = 0; s < member->stage_count && count < MR_MAX_GROUPS; s++) {
            const mr_stage_record *stage = &member->stages[s];
            if (stage->stage != 0 || find_group(out, count, stage->group) ||
                !is_complete(view, stage))
                continue;
            out[count++] = (mr_group_place){.name = stage->group,
                                            .digest = stage->digest,
                                            .first = member,
                                            .stages = stage->stages};
        }
    }
    qsort(out, count, sizeof(*out), by_name);
    return count;
}

/* --- owners ----------------------------------------------------------------------------------- */

static uint64_t weight_of(const char *group, const char *coordinator) {
    uint64_t hash = 1469598103934665603ull;
    for (const char *at = group; *at; at++) hash = (hash ^ (uint8_t)*at) * 1099511628211ull;
    hash = (hash ^ '/') * 1099511628211ull;
    for (const char *at = coordinator; *at; at++) hash = (hash ^ (uint8_t)*at) * 1099511628211ull;
    hash ^= hash >> 33;
    hash *= 0xff51afd7ed558ccdull;
    return hash ^ (hash >> 33);
}

static bool is_alive(const mr_ownership_input *in, const mr_member *coordinator) {
    if (strcmp(coordinator->id, in->self) == 0) return true;
    if (coordinator->state == MR_MEMBER_DRAINING) return false;
    const double silent = in->silent_s(in->context, coordinator);
    return silent >= 0 ? silent < MR_OWNER_SILENT_S : coordinator->is_listed;
}

/* The live coordinator that should have the group. */
static const char *preferred(const mr_ownership_input *in, const char *group) {
    const char *best = in->self;
    uint64_t weight = weight_of(group, in->self);
    for (uint32_t m = 0; m < in->view->member_count; m++) {
        const mr_member *member = in->view->members[m];
        if (member->role != MR_ROLE_COORDINATOR || !is_alive(in, member)) continue;
        const uint64_t other = weight_of(group, member->id);
        if (other > weight || (other == weight && strcmp(member->id, best) < 0)) {
            best = member->id;
            weight = other;
        }
    }
    return best;
}

static bool is_abandoned(const mr_ownership_input *in, const mr_group_place *group,
                         const mr_owner_record *owner) {
    if (!owner) return true;
    if (group->owner) {
        const double silent = in->silent_s(in->context, group->owner);
        if (group->owner->state != MR_MEMBER_DRAINING && group->owner->is_listed && silent >= 0 &&
            silent < MR_OWNER_SILENT_S)
            return false;
        if (silent < 0 && group->owner->is_listed) return false; /* not asked yet */
        if (silent >= 0 && silent < MR_OWNER_SILENT_S) return false;
    }
    const double unheard = in->owner_silent_s(in->context, group->first);
    return unheard < 0 || unheard > MR_OWNER_SILENT_S;
}

uint32_t mr_ownership_decide(mr_group_place out[MR_MAX_GROUPS], const mr_ownership_input *in) {
    const uint32_t count = find_groups(out, in->view);
    for (uint32_t i = 0; i < count; i++) {
        mr_group_place *g = &out[i];
        const mr_owner_record *owner = mr_view_owner(in->view, g->name);
        if (owner) {
            g->epoch = owner->epoch;
            g->owner = mr_view_member(in->view, MR_ROLE_COORDINATOR, owner->coordinator);
            g->is_mine = strcmp(owner->coordinator, in->self) == 0;
        }
        if (g->is_mine || !in->is_etcd_up || !is_abandoned(in, g, owner)) continue;
        g->is_claimable = strcmp(preferred(in, g->name), in->self) == 0;
    }
    return count;
}
